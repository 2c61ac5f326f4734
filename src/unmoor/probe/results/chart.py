"""Charts of the sorted load per address (Figure 7 of the paper), as text and as SVG. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from itertools import pairwise
from math import ceil, floor, log10

#: Ratio of the largest to the smallest load from which the axis is logarithmic.
_LOG_FROM = 50
_EIGHTHS = " ▁▂▃▄▅▆▇█"


class _Axis:
    """Maps a load to 0..1, with ticks; logarithmic from 1 when loads differ by orders of magnitude."""

    def __init__(self, loads: Sequence[int]) -> None:
        most, least = max(loads), max(1, min(loads))
        self.log = most / least >= _LOG_FROM
        if self.log:
            self._top: float = ceil(round(log10(most), 9))
            self.ticks = [10**power for power in range(int(self._top) + 1)]
        else:
            step = _round_step(most / 4)
            count = floor(most / step) + 1
            self._top = step * count
            self.ticks = [step * number for number in range(count + 1)]

    def height(self, load: float) -> float:
        """Return the position of `load` between the bottom (0) and the top (1) of the axis."""
        if self.log:
            # The axis begins at 1: a load of 0 is drawn at the bottom.
            return log10(load) / self._top if load > 1 else 0.0
        return load / self._top


def _round_step(wanted: float) -> int:
    """Return the smallest of 1, 2, 5, 10, 20, 50 ... that is at least `wanted`."""
    power = 10 ** floor(log10(max(wanted, 1)))
    return int(next(factor * power for factor in (1, 2, 5, 10) if factor * power >= wanted))


def _columns(loads: Sequence[int], width: int) -> list[float]:
    """Return the means of `width` equal parts of `loads`; fewer loads are stretched."""
    count = len(loads)
    columns = []
    for column in range(width):
        low = column * count // width
        high = max(low + 1, (column + 1) * count // width)
        columns.append(sum(loads[low:high]) / (high - low))
    return columns


def terminal(loads: Sequence[int], title: str, width: int = 64, height: int = 10) -> Iterator[str]:
    """Yield the lines of a bar chart of `loads`, sorted in descending order."""
    axis = _Axis(loads)
    heights = [axis.height(value) * height for value in _columns(loads, width)]
    labels = {round(axis.height(tick) * height): f"{tick:,}" for tick in axis.ticks}
    margin = max(map(len, labels.values()))
    yield f"{title}{' (logarithmic)' if axis.log else ''}"
    for row in range(height, 0, -1):
        cells = (_EIGHTHS[max(0, min(8, round((value - row + 1) * 8)))] for value in heights)
        yield f"{labels.get(row, ''):>{margin}} │{''.join(cells)}"
    yield f"{labels.get(0, ''):>{margin}} └{'─' * width}"
    last = f"{len(loads):,}"
    yield f"{'':>{margin}}  1{last:>{width - 1}}"


_WIDTH, _HEIGHT = 760, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 78, 28, 74, 58
_STYLE = """
  text { font: 13px system-ui, 'Helvetica Neue', Arial, sans-serif; fill: #475569; }
  .title { font-size: 17px; font-weight: 600; fill: #0f172a; }
  .grid { stroke: #e2e8f0; } .axis { stroke: #94a3b8; }
  .load { fill: none; stroke: #2563eb; stroke-width: 2; stroke-linejoin: round; }
  .area { fill: #2563eb; opacity: .12; }
  .mean { stroke: #ea580c; stroke-dasharray: 6 5; stroke-width: 1.5; } .meanlabel { fill: #ea580c; }
"""


def svg(loads: Sequence[int], title: str, subtitle: str, unit: str) -> str:
    """Return a chart of `loads`, sorted in descending order; `unit` is the unit of the x axis."""
    axis = _Axis(loads)
    inner_width, inner_height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
    floor_y = _TOP + inner_height

    def y(load: float) -> float:
        return round(floor_y - axis.height(load) * inner_height, 1)

    columns = _columns(loads, min(len(loads), inner_width))
    edges = [_LEFT + inner_width * place / len(columns) for place in range(len(columns) + 1)]
    steps = " ".join(
        f"{low:.1f},{y(value)} {high:.1f},{y(value)}"
        for value, (low, high) in zip(columns, pairwise(edges), strict=True)
    )
    mean = sum(loads) / len(loads)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{escape(title)}">',
        f"<style>{_STYLE}</style>",
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" rx="8" fill="#ffffff"/>',
        f'<text class="title" x="{_LEFT}" y="32">{escape(title)}</text>',
        f'<text x="{_LEFT}" y="53">{escape(subtitle)}</text>',
        *(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(tick)}" y2="{y(tick)}"/>'
            f'<text x="{_LEFT - 10}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:,}</text>'
            for tick in axis.ticks
        ),
        f'<polygon class="area" points="{_LEFT},{floor_y} {steps} {_WIDTH - _RIGHT},{floor_y}"/>',
        f'<polyline class="load" points="{steps}"/>',
        f'<line class="mean" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(mean)}" y2="{y(mean)}"/>',
        f'<text class="meanlabel" x="{_WIDTH - _RIGHT}" y="{y(mean) - 8:.1f}" text-anchor="end">'
        f"mean {mean:,.1f}</text>",
        f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{floor_y}" y2="{floor_y}"/>',
        f'<text x="{_LEFT}" y="{floor_y + 20}">1</text>',
        f'<text x="{_WIDTH - _RIGHT}" y="{floor_y + 20}" text-anchor="end">{len(loads):,}</text>',
        f'<text x="{_LEFT + inner_width / 2}" y="{_HEIGHT - 16}" text-anchor="middle">'
        f"{escape(unit)}, by load</text>",
        f'<text transform="translate(20 {_TOP + inner_height / 2}) rotate(-90)" text-anchor="middle">'
        f"answers{' (logarithmic)' if axis.log else ''}</text>",
        "</svg>",
    ]
    return "\n".join(parts) + "\n"
