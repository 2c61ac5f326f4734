"""Checks of the DNS documents of a whole inventory, located in the inventory."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from unmoor.dns.check.check import Checked, check, zone_faults
from unmoor.dns.parse import content
from unmoor.dns.parse.content import Content
from unmoor.dns.parse.document import parse
from unmoor.errors import Problem
from unmoor.model.compile import Compiled

#: Contents that are kept, since further edges may have the same.
_KEPT = 4


def problems(compiled: Compiled) -> Iterator[Problem]:
    """Yield the problems of all documents and drafts of an inventory.

    Edges share what they have in common: zones and hostnames are parsed once, and what differs in nothing but
    the edges' own settings is checked once. A problem of several edges is yielded for each.
    """
    contents: deque[Content] = deque(maxlen=_KEPT)
    checked: Checked | None = None
    for host, pair in compiled.documents.items():
        parsed = parse(pair.dns, pair.registry, known=contents)
        if parsed.content not in contents:
            contents.append(parsed.content)
        checked = check(parsed, checked)
        yield from map(compiled.sources[host].problem, checked.faults)
    for host, draft in compiled.drafts.items():
        found = content.parse(draft.zones, known=contents)
        if found not in contents:
            contents.append(found)
        yield from map(compiled.sources[host].problem, zone_faults(found, draft.complete))
