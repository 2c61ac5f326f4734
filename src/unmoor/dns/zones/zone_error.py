"""What is wrong with an entry of a zone file, in words: the value, the reason and the fix.

dnspython's errors name neither the value nor a remedy. This module derives both from the entry's text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

import dns.exception
import dns.name
import dns.rdataclass
import dns.rdatatype
import dns.ttl

#: Characters of a value that a message shows.
MAX_SHOWN = 60

#: Comments, quoted strings, parentheses, and everything else between blanks (RFC 1035 section 5.1).
_TOKEN = re.compile(r';[^\r\n]*|"(?:[^"\\\r\n]|\\[^\r\n])*"?|[()]|(?:[^\s;()"\\]|\\[^\r\n]|\\)+')
#: Data of common types, as examples.
_FORMS = {
    "A": "198.18.0.1",
    "AAAA": "2001:db8::1",
    "CAA": '0 issue "ca.example.net"',
    "CNAME": "www",
    "DNAME": "other.example.net.",
    "DS": "12345 13 2 49FD46E6C4B45C55D4AC69CBD3CD34AC1AFE51DE...",
    "HTTPS": "1 . alpn=h2",
    "MX": "10 mail",
    "NS": "ns1",
    "PTR": "www.example.com.",
    "SOA": "ns1 hostmaster 1 7200 900 1209600 300",
    "SRV": "1 1 5060 host",
    "SSHFP": "4 2 49FD46E6C4B45C55...",
    "SVCB": "1 . alpn=h2",
    "TLSA": "3 1 1 49FD46E6C4B45C55...",
    "TXT": '"a text"',
}
_DIRECTIVES = ("$ORIGIN", "$TTL", "$GENERATE")
_NAME_FIX = "write a domain name, as in www, or www.example.com. with a final dot"
_TTL_FIX = "write seconds, as in 3600, or a number with a unit (s, m, h, d, w), as in 1h"
_CLASSES = frozenset(each.name for each in dns.rdataclass.RdataClass)
#: dnspython's words for octets that are not written as they should be.
_ENCODINGS = {
    "odd-length string": "hexadecimal: it has an odd number of digits",
    "non-hexadecimal digit found": "hexadecimal",
    "only base64 data is allowed": "base64",
    "incorrect padding": "base64: its length is wrong",
}


@dataclass(frozen=True)
class Entry:
    """An entry's tokens by their meaning; the type is empty if there is none."""

    tokens: tuple[str, ...]
    owner: str
    rdclass: str
    rtype: str
    data: tuple[str, ...]

    @property
    def kind(self) -> str:
        """The type in upper case."""
        return self.rtype.upper()

    @classmethod
    def of(cls, text: str) -> Entry:
        """Split an entry: owner, TTL and class may be missing, and TTL and class come in either order."""
        tokens = tuple(token for token in _TOKEN.findall(text) if token[0] != ";")
        words = [token for token in tokens if token not in ("(", ")")]
        owner = words.pop(0) if words and text[:1] not in (" ", "\t") else ""
        rdclass = ""
        while words:
            if not rdclass and _is_class(words[0]):
                rdclass = words[0]
            elif not _is_ttl(words[0]):
                break
            words.pop(0)
        return cls(tokens, owner, rdclass, words[0] if words else "", tuple(words[1:]))


def explain(text: str, message: str, last: str) -> tuple[str, str]:
    """Return what is wrong with an entry, and the fix.

    `text` is the entry, `message` dnspython's, and `last` the token that it read last, empty at the end of
    the entry.
    """
    entry, said = Entry.of(text), message.lower().rstrip(".")
    found = (
        _in_punctuation(entry, said)
        or (_in_directive(entry) if entry.owner.startswith("$") else None)
        or _before_data(entry, said)
        or _in_name(entry, said)
        or _in_address(entry)
        or _in_value(entry, said, last)
        or _in_data(entry, said, last)
    )
    if found:
        return found
    detail = f": {message.rstrip('.')}" if message else ""
    return f"is not a valid {entry.kind} record{detail}", _form(entry.kind)


def shown(value: str) -> str:
    """Return a value as messages show it."""
    return f"`{value if len(value) <= MAX_SHOWN else value[: MAX_SHOWN - 3] + '...'}`"


def _in_punctuation(entry: Entry, said: str) -> tuple[str, str] | None:
    depth = 0
    for token in entry.tokens:
        depth += (token == "(") - (token == ")")  # noqa: S105 - tokens of a zone file
        if depth < 0:
            return "has a `)` without a `(` before it", "remove it, or add the `(`"
    if said == "unbalanced parentheses" and depth:
        return "has a `(` that is never closed", "add `)` after the record's last value"
    if said == "newline in quoted string":
        return "has a quoted string that does not end in its line", 'add the closing `"`'
    if said == "string too long":
        return "has a string of more than 255 octets", 'split it into several: `"first" "second"`'
    return None


def _in_directive(entry: Entry) -> tuple[str, str]:
    name = entry.owner.upper()
    value = next(iter(token for token in entry.tokens[1:]), "")
    if name == "$INCLUDE":
        return "$INCLUDE is not allowed", "put the records of that file in its place"
    if name not in _DIRECTIVES:
        return f"{shown(entry.owner)} is not a directive", f"use one of {', '.join(_DIRECTIVES)}"
    if name == "$GENERATE":
        return "is not a valid $GENERATE", "write it as in `$GENERATE 1-9 host$ A 198.18.0.$`"
    if not value:
        return f"{name} has no value", _TTL_FIX if name == "$TTL" else _NAME_FIX
    if name == "$TTL":
        return f"{shown(value)} is not a TTL", _TTL_FIX
    return _bad_name(value) or (f"{shown(value)} is not a domain name", _NAME_FIX)


def _before_data(entry: Entry, said: str) -> tuple[str, str] | None:
    """Explain what comes before the data: TTL, class and type."""
    if said == "missing default ttl value":
        return "has no TTL, and neither $TTL nor an SOA record is before it", "begin with `$TTL 3600`"
    if said == "rr class is not zone's class":
        return f"{shown(entry.rdclass)} is not the zone's class, IN", "write IN, or leave out the class"
    if not entry.kind:
        return "has no record type", "write it as in `www 300 IN A 198.18.0.1`"
    if said.startswith("unknown rdatatype"):
        if entry.rtype[0].isdigit():
            return f"{shown(entry.rtype)} is neither a TTL nor a record type", _TTL_FIX
        return f"{shown(entry.rtype)} is not a record type", "correct it; a type without a name is TYPE123"
    return None


def _in_name(entry: Entry, said: str) -> tuple[str, str] | None:
    if not said.startswith(("a dns label", "a dns name", "escape")):
        return None
    for token in (entry.owner, *entry.data):
        if found := _bad_name(token):
            return found
    if "255" in said:
        longest = max((entry.owner, *entry.data), key=len)
        return f"{shown(longest)} has more than 255 octets with the origin", _NAME_FIX
    return None


def _bad_name(text: str) -> tuple[str, str] | None:
    """Explain why a text is not a domain name; return None if it is one."""
    try:
        dns.name.from_text(text)
    except dns.name.LabelTooLong:
        return f"{shown(text)} has a label of more than 63 octets", _NAME_FIX
    except dns.name.NameTooLong:
        return f"{shown(text)} has more than 255 octets", _NAME_FIX
    except dns.name.EmptyLabel:
        return f"{shown(text)} has an empty label", _NAME_FIX
    except (dns.exception.DNSException, ValueError):
        return f"{shown(text)} is not a domain name", _NAME_FIX
    return None


def _in_address(entry: Entry) -> tuple[str, str] | None:
    """Explain the data of an A or AAAA record, unless it is one address."""
    version = {"A": 4, "AAAA": 6}.get(entry.kind)
    if version is None or entry.data[:1] == ("\\#",):
        return None
    if len(entry.data) != 1:
        why = f"has {len(entry.data) or 'no'} addresses; each {entry.kind} record has one"
        return why, f"write a record for each, as in `www {entry.kind} {_FORMS[entry.kind]}`"
    value = entry.data[0]
    if value[0] == '"':
        return f"{shown(value)} is in quotes", f"write it as in `www {entry.kind} {_FORMS[entry.kind]}`"
    try:
        found: IPv4Address | IPv6Address | None = ip_address(value)
    except ValueError:
        found = None
    if found and found.version == version:
        return None
    why = f"{shown(value)} is not an IPv{version} address"
    if found:
        return why, f"change the type to {'A' if found.version == 4 else 'AAAA'}, or the address"
    form = "four numbers from 0 to 255, as in" if version == 4 else "one as in"
    return why, f"write {form} {_FORMS[entry.kind]}"


def _in_value(entry: Entry, said: str, last: str) -> tuple[str, str] | None:
    """Explain an error of one value, which dnspython read last."""
    if not last:
        return None
    why = ""
    if said == "expecting an integer":
        why = "is not a number"
    elif found := re.match(r"(\d+) is not an unsigned (\d+)-bit integer", said):
        last, why = found[1], f"is not a number from 0 to {2 ** int(found[2]) - 1}"
    elif said.startswith("expecting") and f'"{last}"' in entry.data:
        why = "is in quotes"
    elif said.startswith("expected eol or eof"):
        why = f"is more than {_article(entry.kind)} record has"
    return (f"{shown(last)} {why}", _form(entry.kind)) if why else None


def _in_data(entry: Entry, said: str, last: str) -> tuple[str, str] | None:
    if said.startswith("expecting") and not last:
        return f"has too few values for {_article(entry.kind)} record", _form(entry.kind)
    for words, form in _ENCODINGS.items():
        if said.startswith(words):
            return f"has data that is not {form}", _form(entry.kind)
    return None


def _form(kind: str) -> str:
    if kind in _FORMS:
        return f"write it as in `@ IN {kind} {_FORMS[kind]}`"
    return "correct the line; see RFC 1035 section 5 and the type's own"


def _article(kind: str) -> str:
    return f"an {kind}" if kind[0] in "AEFHILMNORSX" and kind != "URI" else f"a {kind}"


def _is_class(word: str) -> bool:
    return word.upper() in _CLASSES or re.fullmatch(r"CLASS\d+", word.upper()) is not None


def _is_ttl(word: str) -> bool:
    try:
        dns.ttl.from_text(word)
    except dns.exception.DNSException:
        return False
    return True
