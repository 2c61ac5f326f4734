"""Manifests: what is refused, and ids that depend on the content alone."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unmoor.errors import InvalidInputError
from unmoor.rollout import manifest
from unmoor.rollout.manifest import ZERO, File, Link


def text(*parts: dict[str, Any], **keys: Any) -> str:
    return json.dumps({"format": 1, "parts": parts, **keys})


def problems(source: str) -> list[str]:
    with pytest.raises(InvalidInputError) as caught:
        manifest.parse(source, "m.json")
    return [str(problem) for problem in caught.value.problems]


NAMES = st.from_regex(r"[a-z][a-z0-9-]{0,8}", fullmatch=True)
PATHS = NAMES.map(lambda name: f"/etc/{name}")
FILES = st.one_of(
    st.fixed_dictionaries({"path": PATHS, "content": st.text(max_size=20)}),
    st.fixed_dictionaries({"path": PATHS, "content": st.text(max_size=20), "mode": st.just("0600")}),
    st.fixed_dictionaries({"path": PATHS, "link": NAMES}),
    st.fixed_dictionaries({"path": PATHS, "absent": st.just(True)}),
)
COMMANDS = st.lists(st.lists(NAMES, max_size=2).map(lambda words: ["/bin/true", *words]), max_size=2)
PARTS = st.fixed_dictionaries(
    {
        "name": NAMES,
        "order": st.integers(0, 99),
        "files": st.lists(FILES, max_size=3, unique_by=lambda each: each["path"]),
        "units": st.lists(NAMES.map(lambda name: {"name": f"{name}.service"}), max_size=1),
        "sysctls": st.dictionaries(NAMES, NAMES, max_size=1),
        "checks": COMMANDS,
        "verify": COMMANDS,
        "requires": st.lists(PATHS, max_size=1),
    }
)


@given(PARTS)
def test_a_manifest_survives_its_own_text(part: dict[str, Any]) -> None:
    first, blobs = manifest.parse(text(part))
    second, none = manifest.parse(first.text)
    assert second == first
    assert second.id == first.id
    assert not none
    assert blobs.keys() == first.digests


def test_the_order_of_the_input_does_not_matter() -> None:
    one, two = {"name": "one", "order": 20}, {"name": "two", "order": 10}
    first, _ = manifest.parse(text(one, two))
    second, _ = manifest.parse(text(two, one))
    assert first.id == second.id
    assert [part.name for part in first.parts] == ["two", "one"]


def test_zero_has_no_id_and_a_changed_mode_makes_another_id() -> None:
    assert ZERO.id == ""
    file = {"path": "/etc/x", "content": "x"}
    ids = {
        manifest.parse(text({"name": "a", "files": [each]}))[0].id
        for each in (file, file | {"mode": "0600"}, file | {"owner": "daemon"}, file | {"content": "y"})
    }
    assert len(ids) == 4


def test_parts_replace_those_of_the_same_name() -> None:
    base, _ = manifest.parse(text({"name": "a", "files": [{"path": "/a", "link": "1"}]}, {"name": "b"}))
    more, _ = manifest.parse(text({"name": "a", "files": [{"path": "/a", "link": "2"}]}))
    merged = base.with_parts(more)
    assert merged.entries == {"/a": Link("/a", "2")}
    assert [part.name for part in merged.parts] == ["a", "b"]


def test_content_becomes_a_blob() -> None:
    found, blobs = manifest.parse(text({"name": "a", "files": [{"path": "/a", "content": "text"}]}))
    (entry,) = found.entries.values()
    assert isinstance(entry, File)
    assert blobs == {entry.digest: b"text"}


def test_only_what_everybody_may_read_is_public() -> None:
    assert File("/a", "", 0o644).public
    assert not File("/a", "", 0o640).public


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "nested too deeply"),
        ("[]", "is not an object with `parts`"),
        (text(format=2), "format = 2: this release reads format 1"),
        (text("x"), "has no valid `name`"),  # type: ignore[arg-type]
        (text({"name": "A"}), "has no valid `name`"),
        (text({"name": "a", "chekcs": []}), "a.chekcs: is not a key of a part"),
        (text({"name": "a", "order": 100}), "a.order = 100: is not a number from 0 to 99"),
        (text({"name": "a", "order": True}), "is not a number"),
        (text({"name": "a", "files": "x"}), "is not a list of objects"),
        (text({"name": "a", "files": [{"path": "etc/x", "link": "y"}]}), "is not an absolute path"),
        (text({"name": "a", "files": [{"path": "/etc/../x", "link": "y"}]}), "without . and .."),
        (text({"name": "a", "files": [{"path": "/x", "content": "", "mode": "644"}]}), "four octal digits"),
        (text({"name": "a", "files": [{"path": "/x", "content": "", "mode": 420}]}), "four octal digits"),
        (text({"name": "a", "files": [{"path": "/x"}]}), "neither `content` nor a `sha256`"),
        (text({"name": "a", "checks": ["/bin/true"]}), "is not a list of strings"),
        (text({"name": "a", "checks": [["true"]]}), "begin with an absolute path"),
        (text({"name": "a", "rules": [{"on": ["/x"], "run": []}]}), "begin with an absolute path"),
        (text({"name": "a", "units": [{"name": ""}]}), "is not a text"),
        (text({"name": "a", "units": [{"name": "x", "active": "yes"}]}), "neither true nor false"),
        (text({"name": "a", "sysctls": {"x": 1}}), "is not an object of strings"),
        (text({"name": "a"}, {"name": "a"}), "belongs to part a already"),
    ],
)
def test_what_is_refused(source: str, words: str) -> None:
    found = problems(source)
    assert any(words in problem for problem in found), found
    assert all("fix:" in problem for problem in found)


def test_a_path_belongs_to_one_part_and_every_problem_is_reported() -> None:
    file = {"path": "/etc/x", "link": "y"}
    (found,) = problems(text({"name": "a", "files": [file]}, {"name": "b", "files": [file]}))
    assert found.startswith("m.json: b.files = /etc/x: belongs to part a already")
    assert len(problems(text({"name": "a", "order": -1, "checks": [["x"]], "zzz": 1}))) == 3


def test_a_misplaced_secret_is_not_printed() -> None:
    assert "hunter2" not in "".join(
        problems(text({"name": "a", "files": [{"path": "/x", "sha256": "hunter2", "content": 7}]}))
    )
