"""Names: from text to the wire and back."""

from __future__ import annotations

import dns.name
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from unmoor.dns.protocol import names

ORIGIN = names.from_text("example.com")


@pytest.mark.parametrize(
    ("text", "wire"),
    [
        ("www", b"\3www\7example\3com\0"),
        ("WWW.Example.COM.", b"\3www\7example\3com\0"),
        ("@", b"\7example\3com\0"),
        (".", b"\0"),
        ("*", b"\1*\7example\3com\0"),
        (r"a\.b", b"\3a.b\7example\3com\0"),
        (r"\065\\", b"\2a\\\7example\3com\0"),
        (r"dot\..", b"\4dot.\0"),
        ("x" * 63 + ".", b"\x3f" + b"x" * 63 + b"\0"),
    ],
)
def test_reads_names(text: str, wire: bytes) -> None:
    assert names.from_text(text, ORIGIN) == wire


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "empty label"),
        ("a..b", "empty label"),
        (".a", "empty label"),
        ("x" * 64, "63 octets"),
        (".".join(["x" * 60] * 5), "255 octets"),
        ("münchen", "xn--"),
        ("a\\", "escape"),
        ("a\\25", "escape"),
        ("a\\256", "escape"),
    ],
)
def test_refuses_what_is_no_name(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        names.from_text(text, ORIGIN)


def test_longest_name_is_accepted() -> None:
    text = ".".join(["x" * 63] * 3 + ["y" * 61]) + "."
    assert len(names.from_text(text)) == names.MAX_NAME


labels = st.lists(st.binary(min_size=1, max_size=20), max_size=6)


@example([b"\\"])
@example([b"."])
@given(labels)
def test_text_and_wire_are_inverse_and_agree_with_dnspython(parts: list[bytes]) -> None:
    wire = names.fold(b"".join(bytes((len(part),)) + part for part in parts) + b"\0")
    text = names.to_text(wire)
    assert names.from_text(text if text == "." else text + ".") == wire
    assert dns.name.from_text(text).canonicalize().to_wire() == wire
    assert list(names.labels(wire)) == [part.lower() for part in parts]


@given(labels, labels)
def test_below_compares_labels_not_octets(one: list[bytes], two: list[bytes]) -> None:
    name = dns.name.Name([*one, b""])
    ancestor = dns.name.Name([*two, b""])
    got = names.is_below(names.fold(name.to_wire()), names.fold(ancestor.to_wire()))
    assert got == name.is_subdomain(ancestor)


def test_octets_like_those_of_an_ancestor_are_not_one() -> None:
    # One label that contains the bytes of 'com.' with its length octet.
    assert not names.is_below(b"\5x\3com\0", b"\3com\0")


def test_suffixes_and_parent() -> None:
    name = names.from_text("a.b.c.")
    assert [names.to_text(each) for each in names.suffixes(name)] == ["a.b.c", "b.c", "c", "."]
    assert names.to_text(names.parent(name)) == "b.c"
    assert names.parent(names.ROOT) == names.ROOT
