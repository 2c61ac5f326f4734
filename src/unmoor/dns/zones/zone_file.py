"""Reading a zone file (RFC 1035 section 5): its records, and everything that is wrong with it.

dnspython reads; after an error it goes on at the next entry, so that an operator sees all errors at once.
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

#: Errors of one file that are listed; it is not read further.
MAX_ERRORS = 1000

_LINE_END = re.compile(r"\r\n?|\n")
#: What decides where an entry ends: comments, quoted strings, escapes, parentheses, ends of lines.
_MARKS = re.compile(r';[^\r\n]*|"(?:[^"\\\r\n]|\\[^\r\n])*"?|\\[^\r\n]|[()]|\r\n?|\n')


class ZoneFileError(Exception):
    """A zone that cannot be served: `line` of its file (0 if unknown), why, and the fix."""

    def __init__(self, line: int, why: str, fix: str) -> None:
        super().__init__(why)
        self.line, self.why, self.fix = line, why, fix


class _SecondRecordError(Exception):
    """A second record of a type that may stand only once at a name, such as CNAME."""


@dataclass
class ZoneFile:
    """What a file holds: records by name, without those in `errors`. Lines count from 1."""

    text: str
    nodes: dict[dns.name.Name, dns.node.Node] = field(default_factory=dict)
    errors: list[ZoneFileError] = field(default_factory=list)
    #: Whether it was read to its end.
    complete: bool = True
    _lines: dict[tuple[dns.name.Name, int], int] = field(default_factory=dict)

    def line_of(self, name: bytes, rtype: int) -> int:
        """The line of the first record of a name (in wire form) and type; 0 if there is none."""
        return self._lines.get((dns.name.from_wire(name, 0)[0], rtype), 0)

    def may_have_had(self, kind: str) -> bool:
        """Whether a record of this type may be among what could not be read."""
        if not self.complete:
            return True
        return any(kind in self.row(error.line).upper().split() for error in self.errors)

    def row(self, line: int) -> str:
        """The text of a line."""
        end = self.begins[line] if line < len(self.begins) else len(self.text)
        return self.text[self.begins[line - 1] : end] if line else ""

    @cached_property
    def begins(self) -> list[int]:
        """Where each line begins, in characters."""
        return [0, *(found.end() for found in _LINE_END.finditer(self.text))]

    def entry_after(self, line: int) -> int:
        """The line behind the entry that begins at `line`: behind its parentheses, if these are closed.

        If not, what is missing is anybody's guess: lines that do not begin with a blank are new entries.
        """
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
        """The first line from `line` on that does not begin with a blank, which would carry on a name."""
        while line <= len(self.begins) and self.row(line)[:1] in (" ", "\t"):
            line += 1
        return line


def read(text: str, origin: dns.name.Name) -> ZoneFile:
    """Read a zone file; nothing is raised for what is wrong with it."""
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
        # dnspython skips records outside the zone in silence; with the root as the limit it hands them
        # on, and the zone refuses them (KeyError).
        reader.zone_origin = dns.name.root
        while (error := _next_error(reader, tokens, origin)) is not None:
            file.errors.append(error)
            line = _resume(reader, file, tokens.line)
            if not line:
                file.complete = False
                break
            if len(file.errors) == MAX_ERRORS:
                why, fix = f"is not read further: {MAX_ERRORS} errors stand before", "correct those first"
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
    """Give the line to go on at after an error in the entry at `line`; 0 if none of what follows is sure.

    One error must not bring about others: of names without their owner, or of records without a TTL.
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


def _next_error(reader: dns.zonefile.Reader, tokens: _Lines, origin: dns.name.Name) -> ZoneFileError | None:
    """Read on to the next error; None at the end of the file."""
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
        why = re.sub(r"^zone:\d+: ", "", str(error)) or "is not a record"
        return ZoneFileError(tokens.line, why, "correct the line; see RFC 1035 section 5")
    except ValueError:  # dnspython's word for it: 'add() has non-origin SOA'
        why = "has an SOA record below its apex"
        return ZoneFileError(tokens.line, why, "remove it, or make it a zone of its own")
    return None


def refuse_contradictions(
    transaction: dns.transaction.Transaction, name: dns.name.Name, rdataset: dns.rdataset.Rdataset
) -> None:
    """Refuse what dnspython would take for a replacement, in a transfer. Raises ZoneFileError."""
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
    """Refuse what dnspython would take as a replacement of the first."""
    rtype = rdataset.rdtype
    first = transaction.get(name, rtype) if dns.rdatatype.is_singleton(rtype) else None
    if first is not None and set(first) != set(rdataset):
        kind = dns.rdatatype.to_text(rtype)
        raise _SecondRecordError(f"has a second {kind} record at {name.to_text(omit_final_dot=True)}")


class _Lines(dns.tokenizer.Tokenizer):
    """Remembers where the current line begins: many an error is noticed only at its end."""

    line = 0

    def get(self, want_leading: bool = False, want_comment: bool = False) -> dns.tokenizer.Token:
        if want_leading and want_comment:  # as the reader asks at the beginning of a line, and only there
            self.line = self.line_number
        return super().get(want_leading, want_comment)
