"""Domain names in wire form (RFC 1035 section 3.1) and lower case, the form in which they are compared."""

from __future__ import annotations

from collections.abc import Iterator

ROOT = b"\0"
#: Octets (RFC 1035 section 2.3.4). A name's limit includes its length octets and the root label.
MAX_LABEL = 63
MAX_NAME = 255


class WireName(bytes):
    """A name in record data that may be compressed (RFC 3597 section 4)."""

    __slots__ = ()


def from_text(text: str, origin: bytes = ROOT) -> bytes:
    """Convert a name from text (RFC 1035 section 5.1) to wire form in lower case.

    A name is absolute if it ends with a dot and relative to `origin` otherwise; '@' is `origin` itself.
    Internationalized names must be A-labels (RFC 5890). Raises ValueError, with the reason as its text, if
    `text` is not a domain name.
    """
    if text == "@":
        return origin
    if text == ".":
        return ROOT
    if not text.isascii():
        raise ValueError("is not ASCII; write international names in their xn-- form")
    labels = _unescape(text) if "\\" in text else text.encode().split(b".")
    absolute = len(labels) > 1 and not labels[-1]  # it ends with a dot that is not escaped
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
    """Split at dots and decode \\X and \\DDD (RFC 1035 section 5.1)."""
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
    """Convert to lower case (RFC 4343). Length octets are below 'A' (65), so they do not change."""
    return wire.lower()


def to_text(wire: bytes) -> str:
    """Convert a name to text without its final dot; the root is '.'."""
    return ".".join(_escape(label) for label in labels(wire)) or "."


def _escape(label: bytes) -> str:
    return "".join([_SHOWN[byte] for byte in label])


# Each octet's text.
_SHOWN = tuple(
    ("\\" if byte in b'."\\;@$()' else "") + chr(byte) if 33 <= byte <= 126 else f"\\{byte:03}"
    for byte in range(256)
)


def labels(wire: bytes) -> Iterator[bytes]:
    """Yield the labels from left to right, without the root."""
    at = 0
    while wire[at]:
        yield wire[at + 1 : at + 1 + wire[at]]
        at += 1 + wire[at]


def offsets(wire: bytes) -> list[int]:
    """Return the offset of each label, from left to right; the last is that of the root.

    Raises ValueError if the name is cut short or has a label that is too long.
    """
    at, found = 0, [0]
    try:
        while length := wire[at]:
            if length > MAX_LABEL:
                raise ValueError(f"has a label of {length} octets")
            at += 1 + length
            found.append(at)
    except IndexError:
        raise ValueError("is cut short") from None
    return found


def end(data: bytes, at: int = 0) -> int:
    """Return the offset after the uncompressed name at `at`. Raises IndexError if it is cut short."""
    while data[at]:
        at += 1 + data[at]
    return at + 1


def suffixes(wire: bytes) -> Iterator[bytes]:
    """Yield the name itself, then each of its ancestors up to the root."""
    at = 0
    while wire[at]:
        yield wire[at:]
        at += 1 + wire[at]
    yield ROOT


def parent(wire: bytes) -> bytes:
    """Return the name without its first label; the parent of the root is the root."""
    return wire[1 + wire[0] :] if wire[0] else ROOT


def is_below(wire: bytes, ancestor: bytes) -> bool:
    """Report whether `wire` is `ancestor` or a name below it."""
    return wire.endswith(ancestor) and any(suffix == ancestor for suffix in suffixes(wire))
