"""Domain names in wire form (RFC 1035 section 3.1), lower case: so they are compared and kept."""

from __future__ import annotations

from collections.abc import Iterator

ROOT = b"\0"
#: RFC 1035 section 2.3.4, in octets; a name's limit counts its length octets and the root.
MAX_LABEL = 63
MAX_NAME = 255


class WireName(bytes):
    """A name inside record data that may be compressed; plain bytes may not (RFC 3597 section 4)."""

    __slots__ = ()


def from_text(text: str, origin: bytes = ROOT) -> bytes:
    """Read a name: relative to `origin`, absolute with a final dot, '@' for `origin` itself.

    Returns it in wire form, lower case. Raises ValueError, saying what is wrong, for anything that is not
    a domain name; names in other scripts must be written in their ASCII form (RFC 5890 A-labels).
    """
    if text == "@":
        return origin
    if text == ".":
        return ROOT
    if not text.isascii():
        raise ValueError("is not ASCII; write international names in their xn-- form")
    labels = _unescape(text) if "\\" in text else text.encode().split(b".")
    absolute = len(labels) > 1 and not labels[-1]  # nothing behind a last dot that is not escaped
    if absolute:
        labels.pop()
    if not all(labels):
        raise ValueError("is not a domain name: it has an empty label")
    if max(map(len, labels)) > MAX_LABEL:
        raise ValueError(f"has a label of more than {MAX_LABEL} octets")
    wire = b"".join([bytes((len(label),)) + label for label in labels]) + (ROOT if absolute else origin)
    if len(wire) > MAX_NAME:
        raise ValueError(f"is longer than {MAX_NAME} octets")
    return fold(wire)


def _unescape(text: str) -> list[bytes]:
    """Split at dots, reading \\X and \\DDD (RFC 1035 section 5.1)."""
    labels, label, at = [], bytearray(), 0
    while at < len(text):
        char = text[at]
        at += 1
        if char == ".":
            labels.append(bytes(label))
            label.clear()
        elif char != "\\":
            label += char.encode()
        elif text[at : at + 3].isdecimal() and len(text[at : at + 3]) == 3 and int(text[at : at + 3]) < 256:
            label.append(int(text[at : at + 3]))
            at += 3
        elif at < len(text) and not text[at].isdecimal():
            label += text[at].encode()
            at += 1
        else:
            raise ValueError("has a broken escape; write \\. for a dot inside a label, or \\DDD")
    return [*labels, bytes(label)]


def fold(wire: bytes) -> bytes:
    """Lower case (RFC 4343). Length octets are at most 63, below 'A', so they stay as they are."""
    return wire.lower()


def to_text(wire: bytes) -> str:
    """Write a name for people, without the final dot ('.' for the root)."""
    return ".".join(_escape(label) for label in labels(wire)) or "."


def _escape(label: bytes) -> str:
    return "".join([_SHOWN[byte] for byte in label])


# Every octet as people read it.
_SHOWN = tuple(
    ("\\" if byte in b'."\\;@$()' else "") + chr(byte) if 33 <= byte <= 126 else f"\\{byte:03}"
    for byte in range(256)
)


def labels(wire: bytes) -> Iterator[bytes]:
    """Give each label from the left, without the root."""
    at = 0
    while wire[at]:
        yield wire[at + 1 : at + 1 + wire[at]]
        at += 1 + wire[at]


def end(data: bytes, at: int = 0) -> int:
    """Give the offset behind the name that begins at `at`; it must be whole, and not compressed."""
    while data[at]:
        at += 1 + data[at]
    return at + 1


def suffixes(wire: bytes) -> Iterator[bytes]:
    """Give the name itself, then each ancestor up to and including the root."""
    at = 0
    while wire[at]:
        yield wire[at:]
        at += 1 + wire[at]
    yield ROOT


def parent(wire: bytes) -> bytes:
    """Give the name without its first label; the root's parent is the root."""
    return wire[1 + wire[0] :] if wire[0] else ROOT


def is_below(wire: bytes, ancestor: bytes) -> bool:
    """Whether `wire` is `ancestor` or a name below it."""
    return wire.endswith(ancestor) and any(suffix == ancestor for suffix in suffixes(wire))
