"""Zone file parsing (RFC 1035 section 5) that reports all errors of a file at once.

dnspython parses; after an error, parsing continues at the next entry.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from io import StringIO

import dns.exception
import dns.name
import dns.node
import dns.rdataclass
import dns.rdataset
import dns.rdatatype
import dns.tokenizer
import dns.transaction
import dns.zone
import dns.zonefile
from dns.node import NodeKind

from unmoor.dns.zones import zone_error

#: Errors of a file after which parsing stops.
MAX_ERRORS = 1000

_LINE_END = re.compile(r"\r\n?|\n")
#: Tokens that determine where an entry ends: comments, quoted strings, escapes, parentheses, line ends.
_MARKS = re.compile(r';[^\r\n]*|"(?:[^"\\\r\n]|\\[^\r\n])*"?|\\[^\r\n]|[()]|\r\n?|\n')


class ZoneFileError(Exception):
    """An error in a zone: the line of its file (from 1, 0 if unknown), the reason, and the fix."""

    def __init__(self, line: int, why: str, fix: str) -> None:
        super().__init__(why)
        self.line, self.why, self.fix = line, why, fix


class _SecondRecordError(Exception):
    """A second record of a type that a name may have only once, such as CNAME."""


@dataclass
class ZoneFile:
    """A parsed file: its errors, and the records by name that have none. Lines count from 1."""

    text: str
    nodes: dict[dns.name.Name, dns.node.Node] = field(default_factory=dict)
    errors: list[ZoneFileError] = field(default_factory=list)
    #: Whether it was parsed to its end.
    complete: bool = True
    _lines: dict[tuple[dns.name.Name, int], int] = field(default_factory=dict)

    def line_of(self, name: bytes, rtype: int) -> int:
        """Return the line of the first record of a name (wire form) and type; 0 if there is none."""
        return self._lines.get((dns.name.from_wire(name, 0)[0], rtype), 0)

    def may_have_had(self, kind: str) -> bool:
        """Report whether an entry that could not be parsed may be a record of this type."""
        if not self.complete:
            return True
        return any(kind in self.row(error.line).upper().split() for error in self.errors)

    def row(self, line: int) -> str:
        """Return the text of a line."""
        end = self.begins[line] if line < len(self.begins) else len(self.text)
        return self.text[self.begins[line - 1] : end] if line else ""

    @cached_property
    def begins(self) -> list[int]:
        """The offset of each line's beginning, in characters."""
        return [0, *(found.end() for found in _LINE_END.finditer(self.text))]

    def entry(self, line: int) -> str:
        """Return the text of the entry at `line`; only its line if its parentheses are not closed."""
        after = self.entry_after(line)
        if not after:
            return self.row(line)
        end = self.begins[after - 1] if after <= len(self.begins) else len(self.text)
        return self.text[self.begins[line - 1] : end]

    def entry_after(self, line: int) -> int:
        """Return the line after the entry that begins at `line`; 0 if its parentheses are not closed."""
        depth = 0
        at = self.begins[line - 1]
        for found in _MARKS.finditer(self.text, at):
            mark = found.group()
            depth += (mark == "(") - (mark == ")" and depth > 0)
            if mark[0] in "\r\n":
                line += 1
                if not depth:
                    return line
        return len(self.begins) + 1 if not depth else 0

    def after_blanks(self, line: int) -> int:
        """Return the first line from `line` on that does not begin with a blank: it has an owner name."""
        while line <= len(self.begins) and self.row(line)[:1] in (" ", "\t"):
            line += 1
        return line


def read(text: str, origin: dns.name.Name) -> ZoneFile:
    """Parse a zone file. Errors are collected in the result, not raised."""
    file = ZoneFile(text)
    zone = dns.zone.Zone(origin, relativize=False)
    source = StringIO(text)
    tokens = _Lines(source, "zone")

    def check(
        transaction: dns.transaction.Transaction, name: dns.name.Name, rdataset: dns.rdataset.Rdataset
    ) -> None:
        _refuse_second(transaction, name, rdataset)
        file._lines.setdefault((name, int(rdataset.rdtype)), tokens.line)

    with zone.writer(replacement=True) as transaction:
        transaction.check_put_rdataset(check)
        reader = dns.zonefile.Reader(tokens, zone.rdclass, transaction)
        # dnspython silently skips records outside the zone. With the root as the reader's limit it passes
        # them to the zone, which raises KeyError.
        reader.zone_origin = dns.name.root
        while (error := _next_error(reader, tokens, file, origin)) is not None:
            file.errors.append(error)
            line = _resume(reader, file, tokens.line)
            if not line:
                file.complete = False
                break
            if len(file.errors) == MAX_ERRORS:
                why, fix = f"is not read further: {MAX_ERRORS} errors before this line", "correct those first"
                file.errors.append(ZoneFileError(line, why, fix))
                file.complete = False
                break
            if line > len(file.begins):
                break
            source.seek(file.begins[line - 1])
            tokens = _Lines(source, "zone")
            tokens.line_number = line
            reader.tok = tokens
    file.nodes = dict(zone.nodes.items())
    return file


def _resume(reader: dns.zonefile.Reader, file: ZoneFile, line: int) -> int:
    """Return the line to continue at after an error in the entry at `line`; 0 to stop parsing.

    An error must not cause others: entries that inherit an owner name or TTL from an invalid entry are
    skipped or get one.
    """
    row = file.row(line)
    if row.upper().startswith("$ORIGIN"):
        return 0
    if not reader.default_ttl_known:
        reader.default_ttl_known = True
    after = file.entry_after(line)
    if not after:
        return file.after_blanks(line + 1)
    if row[:1] not in (" ", "\t", "$", ""):
        try:
            reader.last_name = dns.name.from_text(row.split(maxsplit=1)[0], reader.current_origin)
        except (dns.exception.DNSException, ValueError):
            return file.after_blanks(after)
    return after


def _next_error(
    reader: dns.zonefile.Reader, tokens: _Lines, file: ZoneFile, origin: dns.name.Name
) -> ZoneFileError | None:
    """Parse up to the next error and return it; None at the end of the file."""
    try:
        reader.read()
    except KeyError:
        why = f"has a record outside the zone {origin.to_text(omit_final_dot=True)}"
        return ZoneFileError(tokens.line, why, "remove it, or correct its name or $ORIGIN")
    except _SecondRecordError as error:
        return ZoneFileError(tokens.line, str(error), "keep one of them")
    except dns.zonefile.CNAMEAndOtherData:
        why = "has a CNAME beside other records of the same name (RFC 1034 section 3.6.2)"
        return ZoneFileError(tokens.line, why, "keep either the CNAME or the others")
    except dns.exception.DNSException as error:
        message = re.sub(r"^zone:\d+: ", "", str(error))
        return ZoneFileError(tokens.line, *zone_error.explain(file.entry(tokens.line), message, tokens.last))
    except ValueError:  # dnspython's text: 'add() has non-origin SOA'
        why = "has an SOA record below its apex"
        return ZoneFileError(tokens.line, why, "remove it, or make it a zone of its own")
    return None


def refuse_contradictions(
    transaction: dns.transaction.Transaction, name: dns.name.Name, rdataset: dns.rdataset.Rdataset
) -> None:
    """Check an RRset of a transfer against those before it, which dnspython would replace.

    Raises ZoneFileError for a CNAME beside other records, and for a second record of a singleton type.
    """
    shown = name.to_text(omit_final_dot=True)
    node, kind = transaction.get_node(name), NodeKind.classify_rdataset(rdataset)
    if node and {node.classify(), kind} == {NodeKind.CNAME, NodeKind.REGULAR}:
        why = f"has a CNAME beside other records at {shown} (RFC 1034 section 3.6.2)"
        raise ZoneFileError(0, why, "keep either the CNAME or the others")
    if rdataset.rdtype == dns.rdatatype.SOA:  # replaced at each step of an incremental transfer
        return
    try:
        _refuse_second(transaction, name, rdataset)
    except _SecondRecordError as error:
        raise ZoneFileError(0, str(error), "keep one of them") from None


def _refuse_second(
    transaction: dns.transaction.Transaction, name: dns.name.Name, rdataset: dns.rdataset.Rdataset
) -> None:
    """Raise _SecondRecordError for a second, different record of a singleton type."""
    rtype = rdataset.rdtype
    first = transaction.get(name, rtype) if dns.rdatatype.is_singleton(rtype) else None
    if first is not None and set(first) != set(rdataset):
        kind = dns.rdatatype.to_text(rtype)
        raise _SecondRecordError(f"has a second {kind} record at {name.to_text(omit_final_dot=True)}")


class _Lines(dns.tokenizer.Tokenizer):
    """Keeps the line on which the current entry begins, since many errors are found only at its end.

    `last` is the token that was read last, empty if that was the end of the entry.
    """

    line = 0
    last = ""

    def get(self, want_leading: bool = False, want_comment: bool = False) -> dns.tokenizer.Token:
        if want_leading and want_comment:  # the reader passes both at the beginning of an entry only
            self.line = self.line_number
        self.last = ""
        token = super().get(want_leading, want_comment)
        self.last = "" if token.is_eol_or_eof() else token.value
        return token
