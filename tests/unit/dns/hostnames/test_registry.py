"""The registry: exactly its names are found, an update equals a rebuild, and damage is refused."""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import subprocess
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from support.program import UNMOOR
from unmoor.commands.dns.registry import cli
from unmoor.dns.hostnames import registry_build, registry_update
from unmoor.dns.hostnames.registry import (
    HASH_BITS,
    HEADER_SIZE,
    INTERIOR,
    Registry,
    RegistryError,
    Tags,
    open_registry,
)
from unmoor.dns.hostnames.registry_list import BadLineError, BadLines, BadLinesError, EntryEncoder, Line
from unmoor.dns.protocol import names
from unmoor.errors import UnmoorError

ZONES = ("example.com", "deep.example.com", "example.net")
APEXES = [names.from_text(zone) for zone in ZONES]
FREE, BUSINESS, NONE = (
    frozenset({("account_type", "free")}),
    frozenset({("account_type", "business"), ("x", "1")}),
    frozenset[tuple[str, str]](),
)


def built(directory: Path, entries: Iterable[tuple[str, Tags]], file: str = "a.registry") -> Registry:
    lines = [Line(number, "", name, tags) for number, (name, tags) in enumerate(entries, 1)]
    registry_build.build(lines, APEXES, directory / file, BadLines("list"))
    return open_registry(directory / file)


def content(registry: Registry) -> object:
    """The content of a registry, without what the build chooses: buckets, numbers of kinds, examples."""
    kinds = {key: (kind.tags, kind.apex, kind.count) for key, kind in registry.kinds.items()}
    entries = {(name, kinds.get(key, INTERIOR)[:2]) for name, key in registry.entries()}
    return entries, set(kinds.values()), len(registry), registry.interior


# Octets that could be mistaken for lengths, marks and ends, and few labels, so that names contain each other.
label = st.one_of(
    st.sampled_from(["a", "b", "www", "*", "A", "0" * 48, "x" * 63, "deep"]),
    st.binary(min_size=1, max_size=4).map(
        lambda octets: "".join(f"\\{o:03}" for o in octets if o != 255) or "y"
    ),
)
name = st.builds(
    lambda labels, zone: ".".join([*labels, zone]),
    st.lists(label, max_size=3),
    st.sampled_from([*ZONES, "EXAMPLE.com", "a.example.net."]),
)
tags = st.sampled_from([FREE, BUSINESS, NONE])


def distinct(entries: Iterable[tuple[str, Tags]]) -> dict[bytes, tuple[str, Tags]]:
    found: dict[bytes, tuple[str, Tags]] = {}
    for text, each in entries:
        found.setdefault(names.from_text(text), (text, each))
    return found


@given(st.lists(st.tuples(name, tags), max_size=40), st.lists(st.binary(max_size=40)), st.randoms())
def test_exactly_what_was_registered_is_found(
    tmp_path_factory: pytest.TempPathFactory,
    entries: list[tuple[str, Tags]],
    others: list[bytes],
    chance: random.Random,
) -> None:
    expected = distinct(entries)
    registry = built(tmp_path_factory.mktemp("r"), expected.values())
    assert len(registry) == len(expected)
    for wire, (_, each) in expected.items():
        kind = registry.kind_of(wire)
        assert kind is not None
        assert kind.tags == each
        assert kind.apex == max((a for a in APEXES if names.is_below(wire, a)), key=len)
    existing = expected.keys() | {
        suffix
        for wire in expected
        for suffix in names.suffixes(wire)
        if len(suffix) > len(registry.zone_of(wire) or b"")
    }
    # Pieces of the file itself are the octets that are likeliest to be mistaken for a name.
    data = registry.octets(HEADER_SIZE, registry.offsets[-1])
    cuts = [chance.randrange(len(data) + 1) for _ in range(40)]
    pieces = [data[one:two] for one, two in pairwise(cuts)]
    pieces += [
        data[at + 1 : at + 1 + data[at] + over] for at in cuts[:20] if at < len(data) for over in (0, 1)
    ]
    pieces += [suffix for wire in expected for suffix in names.suffixes(wire)]
    for piece in [*others, *pieces]:
        assert (registry.kind_of(piece) is not None) == (piece in expected)
        assert registry.exists(piece) == (piece in existing)
    assert registry.interior == len(existing - expected.keys())
    assert {wire for wire, key in registry.entries() if key != INTERIOR} == expected.keys()


change = st.tuples(st.sampled_from(registry_update.ACTIONS), name, tags)


@given(st.lists(st.tuples(name, tags), max_size=30), st.lists(change, max_size=20))
def test_an_update_is_a_rebuild(
    tmp_path_factory: pytest.TempPathFactory,
    entries: list[tuple[str, Tags]],
    changes: list[tuple[str, str, Tags]],
) -> None:
    directory = tmp_path_factory.mktemp("r")
    before = distinct(entries)
    after, lines = dict(before), []
    for action, text, each in changes:
        wire = names.from_text(text)
        lines.append(Line(len(lines) + 1, action, text, each))
        if any(names.from_text(line.name) == wire for line in lines[:-1]):
            continue  # a bad line, like impossible changes
        if action == "remove":
            after.pop(wire, None)
        elif (action == "add") == (wire not in before):
            after[wire] = (text, each)
    bad = BadLines("changes")
    old = built(directory, before.values())
    registry_update.update(old, lines, directory / "new", bad, skip_bad=True)
    updated = open_registry(directory / "new")
    assert content(updated) == content(built(directory, after.values(), "again"))
    for kind in updated.kinds.values():
        assert updated.kind_of(kind.example) is kind


def test_an_apex_that_is_removed_leaves_nothing_behind(tmp_path: Path) -> None:
    zones = [names.from_text(zone) for zone in ("example.com", "a.b.example.com")]
    entries = [
        ("example.com", FREE),
        ("x.example.com", FREE),
        ("a.b.example.com", FREE),
        ("c.b.example.com", FREE),
    ]
    lines = [Line(number, "", name, tags) for number, (name, tags) in enumerate(entries, 1)]
    registry_build.build(lines, zones, tmp_path / "old", BadLines("list"))
    gone = [Line(1, "remove", "example.com", NONE), Line(2, "remove", "c.b.example.com", NONE)]
    registry_update.update(open_registry(tmp_path / "old"), gone, tmp_path / "new", BadLines("changes"))
    registry_build.build([lines[1], lines[2]], zones, tmp_path / "again", BadLines("list"))
    assert content(open_registry(tmp_path / "new")) == content(open_registry(tmp_path / "again"))


SOME = [("www.example.com", FREE), ("*.shop.example.com", BUSINESS), ("a.b.c.example.net", NONE)]


def test_damage_at_any_octet_is_refused(tmp_path: Path) -> None:
    path = built(tmp_path, SOME).path
    data, digest = path.read_bytes(), hashlib.sha256(path.read_bytes()).hexdigest()
    broken = tmp_path / "broken"
    for at in [*range(HEADER_SIZE + 40), *range(HEADER_SIZE + 40, len(data), 7)]:
        flipped = data[:at] + bytes((data[at] ^ 1 << at % 8,)) + data[at + 1 :]
        for wrong in (flipped, data[:at], data + data[: at + 1]):
            broken.write_bytes(wrong)
            for named in (digest, None):
                with pytest.raises(RegistryError):
                    open_registry(broken, named)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "is not a registry"),
        (b"name,account_type\n", "is not a registry"),
        (
            b"UNMOORRG\x02\0\0\0" + bytes(100),
            "has format version 2, and this release of unmoor reads version 1",
        ),
        (b"UNMOORRG\x01\0\0\0" + bytes(4), "is cut short"),
        (b"UNMOORRG\x01\0\0\0" + bytes(100), "has 112 octets, not 0 as in its header"),
    ],
)
def test_a_file_that_is_no_registry_is_reported(tmp_path: Path, data: bytes, why: str) -> None:
    path = tmp_path / "x"
    path.write_bytes(data)
    with pytest.raises(RegistryError, match=why):
        open_registry(path)
    with pytest.raises(RegistryError, match="No such file"):
        open_registry(tmp_path / "missing")


def test_a_registry_that_is_verified_is_read_once_until_it_changes(tmp_path: Path) -> None:
    path = built(tmp_path, SOME).path
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert open_registry(path, digest) is open_registry(path, digest)
    built(tmp_path, SOME[:1])
    with pytest.raises(RegistryError, match="is not the file that the document names"):
        open_registry(path, digest)


def test_equal_lists_give_equal_files(tmp_path: Path) -> None:
    one, two = built(tmp_path, SOME), built(tmp_path, SOME, "b")
    assert one.path.read_bytes() == two.path.read_bytes()


def in_one_bucket(prime: int, zone: str) -> list[str]:
    """More names than a bucket can have, all in the same one of 256."""
    chance, found = random.Random(1), []
    while len(found) <= registry_build.MAX_IN_BUCKET:
        text = f"{chance.getrandbits(64):x}.{zone}"
        if int.from_bytes(names.from_text(text), "little") % prime >> HASH_BITS - 8 == 7:
            found.append(text)
    return found


def test_names_chosen_to_fill_one_bucket_get_another_prime(tmp_path: Path) -> None:
    chosen = in_one_bucket(registry_build.prime(0), "example.com")
    registry = built(tmp_path, [(text, FREE) for text in chosen])
    assert registry.header.prime == registry_build.prime(1)
    assert all(registry.kind_of(names.from_text(text)) for text in chosen)
    # An update cannot exceed a bucket either.
    more = in_one_bucket(registry.header.prime, "example.net")
    lines = [Line(number, "add", text, FREE) for number, text in enumerate(more, 1)]
    with pytest.raises(UnmoorError, match="build it again"):
        registry_update.update(registry, lines, tmp_path / "new", BadLines("changes"))
    assert [path.name for path in tmp_path.iterdir()] == ["a.registry"]


def test_a_name_registered_twice_is_noted_once_whatever_the_prime(tmp_path: Path) -> None:
    chosen = in_one_bucket(registry_build.prime(0), "example.com")
    lines = [Line(number, "", text, FREE) for number, text in enumerate(chosen * 2, 1)]
    bad = BadLines("list")
    summary = registry_build.build(lines, APEXES, tmp_path / "out", bad, skip_bad=True)
    assert (summary.names, bad.count) == (len(chosen), len(chosen))


def test_primes_are_primes_of_thirty_bits() -> None:
    for attempt in (0, 1, 7, 8, 8):
        found = registry_build.prime(attempt)
        assert 2 ** (HASH_BITS - 1) < found < 2**HASH_BITS
        assert pow(3, found - 1, found) == 1


def test_a_list_larger_than_what_is_held_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [(f"host{n}.example.com", FREE if n % 3 else BUSINESS) for n in range(5000)]
    whole = built(tmp_path, entries).path.read_bytes()
    monkeypatch.setattr(registry_build, "_HELD", 512)
    assert built(tmp_path, entries, "b").path.read_bytes() == whole


# -- lists -------------------------------------------------------------------------------------------------

CSV = "name,account_type,x\nwww.example.com,free,\nWWW2.example.com.,business,1\n*.example.net,,\n"
JSON = """{"name": "www.example.com", "tags": {"account_type": "free"}}
{"name": "WWW2.example.com.", "tags": {"x": "1", "account_type": "business"}}

{"name": "*.example.net"}
"""
ZONE_OPTIONS = [word for zone in ZONES for word in ("--zone", zone)]


def run(*words: str | Path, stdin: bytes | None = None) -> str:
    result = CliRunner().invoke(cli, [str(word) for word in words], input=stdin, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_csv_json_and_gzip_are_equivalent(tmp_path: Path) -> None:
    files: dict[str, bytes] = {
        "a.csv": CSV.encode(),
        "bom.csv": b"\xef\xbb\xbf" + CSV.replace("\n", "\r\n").encode(),
        "quoted.csv": CSV.replace("www.example.com", '"www.example.com"').encode(),
        "other.csv": b"x,name,account_type\n,www.example.com,free\n1,www2.example.com,business\n"
        b",*.example.net,",
        "a.json": JSON.encode(),
        "a.gz": gzip.compress(CSV.encode()),
    }
    expected = content(
        built(
            tmp_path,
            [("www.example.com", FREE), ("www2.example.com", BUSINESS), ("*.example.net", NONE)],
        )
    )
    for file, data in files.items():
        (tmp_path / file).write_bytes(data)
        run("build", tmp_path / file, *ZONE_OPTIONS, "-o", tmp_path / "out", "--quiet")
        assert content(open_registry(tmp_path / "out")) == expected, file


@pytest.mark.parametrize(
    "data", [CSV.encode(), JSON.encode(), gzip.compress(CSV.encode())], ids=["csv", "json", "gzip"]
)
def test_standard_input(tmp_path: Path, data: bytes) -> None:
    words = ["dns", "registry", "build", "-", *ZONE_OPTIONS, "-o", str(tmp_path / "out")]
    subprocess.run([*UNMOOR, *words], input=data, check=True)
    assert len(open_registry(tmp_path / "out")) == 3


BAD = [
    ("www.example.org,free,", "www.example.org is in none of the zones"),
    ("www,free,", "www is in none of the zones"),
    ("@,free,", "@ is in none of the zones"),
    (",free,", " is not a domain name: it has an empty label"),
    ("a..example.com,free,", "a..example.com is not a domain name"),
    (f"{'a' * 64}.example.com,free,", "has a label of more than 63 octets"),
    (f"{'.'.join(['a' * 60] * 5)}.example.com,free,", "is longer than 255 octets"),
    ("bücher.example.com,free,", "bücher.example.com is not ASCII"),
    (r"a\255.example.com,free,", "has the octet 255"),
    (r"a\25.example.com,free,", "has a broken escape"),
    ("\x1b[2J.example.org,free,", "\\027[2J.example.org is in none of the zones"),
    ("b.example.com,free", "has 2 fields, not 3"),
    ('"b.example.com,free,', "is not valid CSV"),
    ("www.example.com,free,", "www.example.com is registered twice, first in line 2"),
    ("WWW.EXAMPLE.com.,free,", "www.example.com is registered twice, first in line 2"),
]


@pytest.mark.parametrize(("line", "why"), BAD)
def test_a_bad_line_is_reported_with_its_number(tmp_path: Path, line: str, why: str) -> None:
    path, out, record = tmp_path / "list.csv", tmp_path / "out", tmp_path / "bad"
    path.write_text(f"name,account_type,x\nwww.example.com,free,\n{line}\nother.example.com,free,\n")
    with pytest.raises(BadLinesError) as error:
        run("build", path, *ZONE_OPTIONS, "-o", out, "--quiet")
    assert f"1 bad line; nothing was written:\n{path}:3: " in str(error.value)
    assert why in str(error.value)
    assert list(tmp_path.iterdir()) == [path]
    said = run("build", path, *ZONE_OPTIONS, "-o", out, "--quiet", "--skip-bad", "--bad", record)
    assert "1 bad line left out" in said
    assert record.read_text().startswith("3: ")
    assert {wire for wire, _ in open_registry(out).entries()} == {
        names.from_text(each) for each in ("www.example.com", "other.example.com")
    }


def test_octets_that_are_no_text_spoil_their_line_only(tmp_path: Path) -> None:
    path, out = tmp_path / "list.csv", tmp_path / "out"
    path.write_bytes(CSV.encode() + b"\xe9.example.com,free,\na.example.com,fr\xe9e,\nb.example.com,free,\n")
    said = run("build", path, *ZONE_OPTIONS, "-o", out, "--quiet", "--skip-bad")
    assert "2 bad lines left out" in said
    assert len(open_registry(out)) == 4


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "is not an object with a name and tags"),
        ('{"tags": {}}', "is not an object with a name and tags"),
        ('{"name": 1}', "is not an object with a name and tags"),
        ('{"name": "b.example.com", "tags": []}', None),
        ('{"name": "b.example.com", "tags": ["a"]}', "is not an object with a name and tags"),
        ('{"name": "b.example.com", "tags": {"a": 1}}', "has a tag whose value is not text"),
        ('{"name": "b.example.com", "tag": {}}', "tag is not a known key"),
        (r'{"name": "b.example.com", "tags": {"a": "\ud800"}}', "is not UTF-8 text"),
    ],
)
def test_a_bad_line_of_json(tmp_path: Path, line: str, why: str | None) -> None:
    path = tmp_path / "list.json"
    path.write_text(f'{{"name": "www.example.com"}}\n{line}\n')
    if why is None:
        run("build", path, *ZONE_OPTIONS, "-o", tmp_path / "out", "--quiet")
        return
    with pytest.raises(BadLinesError) as error:
        run("build", path, *ZONE_OPTIONS, "-o", tmp_path / "out", "--quiet")
    assert f"{path}:2: " in str(error.value)
    assert why in str(error.value)


def test_a_million_bad_lines_fit_on_a_screen_and_are_all_counted(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text("name\n" + "".join(f"host{n % 10_000}.example.com\n" for n in range(30_000)))
    with pytest.raises(BadLinesError) as error:
        run("build", path, *ZONE_OPTIONS, "-o", tmp_path / "out", "--quiet", "--bad", tmp_path / "bad")
    lines = str(error.value).splitlines()
    assert lines[0] == "20000 bad lines; nothing was written:"
    assert len(lines) <= 24
    assert len((tmp_path / "bad").read_text().splitlines()) == 20_000


@pytest.mark.parametrize("first", ["", "host,x", "name,name", "name,,x", "\x00\x01"])
def test_a_file_that_is_no_list(tmp_path: Path, first: str) -> None:
    path = tmp_path / "list.csv"
    path.write_text(first + "\n")
    with pytest.raises(UnmoorError, match="begin with a line such as name,account_type"):
        run("build", path, *ZONE_OPTIONS, "-o", tmp_path / "out")
    path.write_bytes(gzip.compress(CSV.encode())[:-9])
    with pytest.raises(UnmoorError, match="name a readable CSV file"):
        run("build", path, *ZONE_OPTIONS, "-o", tmp_path / "out")
    with pytest.raises(UnmoorError, match="No such file"):
        run("build", tmp_path / "missing", *ZONE_OPTIONS, "-o", tmp_path / "out")
    path.write_text(CSV)
    with pytest.raises(UnmoorError, match="must be writable"):
        run("build", path, *ZONE_OPTIONS, "-o", tmp_path / "missing" / "out")


def test_too_many_kinds_are_refused_with_a_reason(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text("name,id\n" + "".join(f"host{n}.example.com,{n}\n" for n in range(65_100)))
    with pytest.raises(UnmoorError, match="leave out tags that identify single hostnames"):
        run("build", path, *ZONE_OPTIONS, "-o", tmp_path / "out", "--quiet")
    assert list(tmp_path.iterdir()) == [path]


def test_update_and_show_print_the_content(tmp_path: Path) -> None:
    path, changes = tmp_path / "a.csv", tmp_path / "changes.csv"
    path.write_text(CSV)
    changes.write_text(
        "action,name,account_type\nadd,a.b.example.com,free\n"
        "change,www.example.com,business\nremove,*.example.net,\n"
    )
    run("build", path, *ZONE_OPTIONS, "-o", tmp_path / "old", "--quiet")
    said = run("update", tmp_path / "old", changes, "-o", tmp_path / "new", "--quiet")
    digest = hashlib.sha256((tmp_path / "new").read_bytes()).hexdigest()
    assert "add 1, change 1, remove 1" in said
    assert f"SHA-256 {digest}" in said
    shown = run("show", tmp_path / "new")
    assert "3 hostnames in 3 zones, 1 names that only have hostnames below them" in shown
    assert digest in shown
    assert json.loads(run("show", tmp_path / "new", "--json"))["hostnames"] == 3
    assert "registered with account_type=business" in run("show", tmp_path / "new", "WWW.example.com")
    assert "is not registered, but names below it are" in run("show", tmp_path / "new", "b.example.com")
    gone = CliRunner().invoke(cli, ["show", str(tmp_path / "new"), "*.example.net"])
    assert (gone.exit_code, gone.output) == (1, "*.example.net is not registered\n")


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("add,www.example.com,free", "is registered already"),
        ("change,new.example.com,free", "is not registered"),
        ("remove,new.example.com,", "is not registered"),
        ("drop,www.example.com,", "drop is not an action"),
        ("remove,www2.example.com,", "is named twice, first in line 2"),
    ],
)
def test_a_change_that_cannot_be_is_a_bad_line(tmp_path: Path, line: str, why: str) -> None:
    path, changes = tmp_path / "a.csv", tmp_path / "changes.csv"
    path.write_text(CSV)
    changes.write_text(f"action,name,account_type\nchange,www2.example.com,free\n{line}\n")
    run("build", path, *ZONE_OPTIONS, "-o", tmp_path / "old", "--quiet")
    with pytest.raises(BadLinesError) as error:
        run("update", tmp_path / "old", changes, "-o", tmp_path / "new")
    assert f"{changes}:3: " in str(error.value)
    assert why in str(error.value)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["a..example.com", ".example.com", f"{'x' * 64}.example.com"])
def test_a_first_label_of_a_wrong_length_is_refused_below_a_known_parent(name: str) -> None:
    encoder = EntryEncoder([names.from_text("example.com")])
    assert encoder.name("www.a.example.com")[0] == names.from_text("www.a.example.com")
    assert encoder.name(f"{'x' * 63}.example.com")[1] == names.from_text("example.com")
    with pytest.raises(BadLineError):
        encoder.name(name)
