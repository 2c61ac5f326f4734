"""Answers by address: a bounded number of counters in memory shared by the parent and its workers.

A worker counts the addresses of a batch when the next batch is drawn, so that single answers cost nothing; on
request it counts those used so far. Small ranges are counted by address, large ones in equal parts.
"""

from __future__ import annotations

import mmap
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from ipaddress import ip_address, summarize_address_range
from itertools import pairwise

from unmoor.dns.policy.pools import Range, Span, ranges_in_use
from unmoor.model import DnsDocument

#: Addresses that are counted individually: an IPv4 /16.
MAX_EXACT = 65536
#: Number of parts of a larger range, and of all parts.
PARTS = 256
_MAX_PARTS = 16 * PARTS
_CELLS = MAX_EXACT + _MAX_PARTS
# After the cells: the number of the last request to settle that the worker has carried out.
_SETTLED = _CELLS


def names(span: Span) -> Iterator[str]:
    """Yield what each cell of a span counts: an address, a prefix, or first and last address of a range."""
    # The lowest number of each cell.
    bounds = [span.first - (-at * span.size // span.cells) for at in range(span.cells + 1)]
    octets = 4 if span.version == 4 else 16
    for low, high in pairwise(bounds):
        first, last = (ip_address(each.to_bytes(octets, "big")) for each in (low, high - 1))
        if first == last:
            yield str(first)
            continue
        prefixes = list(summarize_address_range(first, last))
        yield str(prefixes[0]) if len(prefixes) == 1 else f"{first}-{last}"


class Layout:
    """Maps addresses of the pools in use by a document's policies to cells."""

    def __init__(self, document: DnsDocument) -> None:
        used = {name for policy in document.policies for name in (policy.answer.pool, *policy.answer.also)}
        self.spans: list[Span] = []
        exact, parts, start = MAX_EXACT, _MAX_PARTS, 0
        found = [
            (version, each)
            for version in (4, 6)
            for each in _union(
                each for name in sorted(used) for each in ranges_in_use(document.pools[name], version)
            )
        ]
        for version, each in sorted(found, key=lambda item: item[1].size):
            if each.size <= exact:
                cells = each.size
                exact -= cells
            else:
                cells = min(PARTS if parts >= PARTS else 1, parts)
                parts -= cells
            if cells:
                self.spans.append(Span(version, *each, start, cells))
                start += cells
        self.spans.sort()
        self.cells = start
        self._firsts = [(span.version, span.first) for span in self.spans]

    def span(self, version: int, number: int) -> Span | None:
        """Return the span of an address, given as a number; None if it is not counted."""
        at = bisect_right(self._firsts, (version, number)) - 1
        if at < 0:
            return None
        found = self.spans[at]
        return found if found.version == version and number < found.first + found.size else None


def _union(ranges: Iterator[Range]) -> list[Range]:
    """Merge ranges that overlap."""
    found: list[Range] = []
    for each in sorted(ranges):
        last = found[-1] if found else None
        if last and each.first < last.first + last.size:
            found[-1] = Range(last.first, max(last.size, each.first + each.size - last.first))
        else:
            found.append(each)
    return found


class WorkerCounters:
    """A worker's cells, and their layout."""

    def __init__(self, layout: Layout, row: memoryview) -> None:
        self.layout = layout
        self.cells = row

    def locate(self, version: int, first: int) -> Span | None:
        """Return the span of a range of a pool; None if there is no room to count it."""
        return self.layout.span(version, first)

    def add(self, address: bytes) -> None:
        """Count an address, in network byte order."""
        number = int.from_bytes(address, "big")
        span = self.layout.span(4 if len(address) == 4 else 6, number)
        if span:
            self.cells[span.cell(number)] += 1

    def settled(self, request: int) -> None:
        """Report that all addresses given so far are counted."""
        self.cells[_SETTLED] = request


class AddressCounters:
    """All workers' cells, for the parent; `_before` keeps the counts of earlier generations."""

    def __init__(self) -> None:
        self._rows: dict[tuple[int, int], memoryview] = {}
        self._layout: Layout | None = None
        self._before: list[int] = []
        self._requests = 0

    def of_worker(self, layout: Layout | None, place: int, generation: int) -> WorkerCounters | None:
        """Return the cells of the worker of `generation` at `place`; None without a layout."""
        if layout is None:
            return None
        key = (place, generation % 2)
        if key not in self._rows:
            self._rows[key] = memoryview(mmap.mmap(-1, (_CELLS + 1) * 8)).cast("Q")
        return WorkerCounters(layout, self._rows[key])

    def switch(self, layout: Layout | None, generation: int) -> None:
        """Switch to `layout` of `generation`; all workers of earlier generations must have ended.

        Counts are kept for addresses that are counted as before; others begin at zero.
        """
        if self._layout:
            self._before = _moved(self._layout, self._sums(generation - 1), layout)
        else:
            self._before = [0] * (layout.cells if layout else 0)
        self.discard(generation - 1)
        self._layout = layout

    def discard(self, generation: int) -> None:
        """Reset the counts of the workers of `generation`."""
        for (_, parity), row in self._rows.items():
            if parity == generation % 2:
                row[:] = memoryview(bytes(len(row) * 8)).cast("Q")

    def request(self) -> int:
        """Return the number of a new request to settle."""
        self._requests += 1
        return self._requests

    def has_settled(self, place: int, generation: int) -> bool:
        """Whether a worker has carried out the last request."""
        row = self._rows.get((place, generation % 2))
        return row is None or row[_SETTLED] == self._requests

    def spans(self, generation: int) -> list[tuple[Span, list[int]]]:
        """Return the counts of each span's cells."""
        if self._layout is None:
            return []
        sums = self._sums(generation)
        return [(span, sums[span.start : span.start + span.cells]) for span in self._layout.spans]

    def _sums(self, generation: int) -> list[int]:
        found = self._before
        for (_, parity), row in self._rows.items():
            if parity == generation % 2:
                found = [one + two for one, two in zip(found, row[: len(found)], strict=True)]
        return found


def _moved(old: Layout, counts: Sequence[int], new: Layout | None) -> list[int]:
    """Convert the counts of one layout's cells to another's."""
    found = [0] * (new.cells if new else 0)
    for span in new.spans if new else ():
        for other in old.spans:
            first = max(span.first, other.first)
            size = min(span.first + span.size, other.first + other.size) - first
            exact = span.cells == span.size and other.cells == other.size
            same = span[:3] == other[:3] and span.cells == other.cells
            if span.version == other.version and size > 0 and (exact or same):
                size = span.cells if same else size
                at, source = span.start + first - span.first, other.start + first - other.first
                found[at : at + size] = counts[source : source + size]
    return found
