"""Two kinds of plots as inline SVG: bars with whiskers, and lines with bands. Colours are classes of the page's CSS."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr

LEFT, RIGHT, TOP, BOTTOM = 62, 16, 16, 52
CHARACTER = 6.6
"""The width of a letter of the labels, about."""
COLOURS = 10


@dataclass(frozen=True)
class Value:
    """A height with its range, and the words that are shown when it is pointed at."""

    y: float
    low: float
    high: float
    title: str = ""


@dataclass(frozen=True)
class Point:
    """A value at a place."""

    x: float
    value: Value


@dataclass(frozen=True)
class Line:
    """A named series; dashed where it is not measured. Points in order of x."""

    name: str
    points: tuple[Point, ...]
    dashed: bool = False


@dataclass(frozen=True)
class Axis:
    """A linear or logarithmic (base 2) axis, from pixels to values: y axes grow upwards."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        low, high, value = (math.log2(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (value - low) / ((high - low) or 1.0) * (self.end - self.start)


def bars(
    groups: Sequence[str],
    names: Sequence[str],
    values: Sequence[Sequence[Value | None]],
    y_label: str,
    *,
    one: bool = False,
    first: int = 0,
) -> str:
    """Groups of bars side by side, each with a whisker from its lowest to its highest.

    Args:
        groups: below the axis. names: of the bars in a group. values: [group][name]; None leaves a gap.
        one: with a line across at 1. first: the colour of the first name.
    """
    known = [value for row in values for value in row if value]
    if not known:
        return ""
    width = max(480, LEFT + RIGHT + len(groups) * max(64, 16 * len(names) + 14))
    height, ticks = 320, nice_ticks(0, max(1.0 if one else 0.0, *(v.high for v in known)))
    y = Axis(0, ticks[-1], height - BOTTOM, TOP)
    step = (width - LEFT - RIGHT) / len(groups)
    parts = [_frame(width, height, y, ticks, y_label)]
    for i, (group, row) in enumerate(zip(groups, values, strict=True)):
        left, bar = LEFT + i * step, (step - 14) / len(names)
        parts.append(_text(left + step / 2, height - BOTTOM + 18, group, "middle"))
        for j, value in enumerate(row):
            if value:
                parts.append(_bar(left + 7 + j * bar, bar, y, value, first + j))
    if one:
        parts.append(f'<path class="one" d="M{LEFT},{y.at(1):.1f}H{width - RIGHT}"/>')
    return _svg(width, height, parts, f"{y_label}: {', '.join(names)}")


def lines(series: Sequence[Line], x_label: str, y_label: str, *, log_x: bool = False, top: float | None = None) -> str:
    """Lines with points and bands from the lowest to the highest; the y axis begins at 0.

    Args:
        top: of the y axis at least.
    """
    points = [point for line in series for point in line.points]
    if not points:
        return ""
    width, height = 620, 320
    xs = sorted({point.x for point in points})
    ticks = nice_ticks(0, max(top or 0.0, *(point.value.high for point in points)))
    margin = 0.0 if log_x else 0.25
    x = Axis(xs[0] - margin, xs[-1] + margin, LEFT + 12, width - RIGHT - 12, log_x)
    y = Axis(0, ticks[-1], height - BOTTOM, TOP)
    parts = [_frame(width, height, y, ticks, y_label)]
    parts += [_text(x.at(value), height - BOTTOM + 18, short(value), "middle") for value in _apart(xs, x)]
    parts.append(_text((LEFT + width - RIGHT) / 2, height - 12, x_label, "middle"))
    parts += [_line(line, i, x, y) for i, line in enumerate(series)]
    return _svg(width, height, parts, f"{y_label} against {x_label}")


def legend(names: Sequence[str], first: int = 0) -> str:
    """Names with their colours, as HTML."""
    items = (f'<span><i class="s{i % COLOURS}"></i>{escape(name)}</span>' for i, name in enumerate(names, first))
    return f'<p class="legend">{"".join(items)}</p>'


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers from `low` or below to `high` or above."""
    if high <= low:
        high = low + 1.0
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def short(value: float) -> str:
    """A number as a label: 4096 as 4k, 0.25 as it is."""
    if value >= 1024 and value % 1024 == 0:
        return f"{value / 1024:g}k"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _frame(width: float, height: float, y: Axis, ticks: Sequence[float], label: str) -> str:
    """Lines across at the ticks, with their numbers, the axis and its label."""
    parts = []
    for tick in ticks:
        parts.append(f'<path class="grid" d="M{LEFT},{y.at(tick):.1f}H{width - RIGHT}"/>')
        parts.append(_text(LEFT - 6, y.at(tick) + 4, short(tick), "end"))
    middle = (TOP + height - BOTTOM) / 2
    parts.append(f'<path class="axis" d="M{LEFT},{height - BOTTOM}H{width - RIGHT}"/>')
    parts.append(f'<text x="14" y="{middle:.1f}" text-anchor="middle" transform="rotate(-90 14 {middle:.1f})">')
    return "".join([*parts, escape(label), "</text>"])


def _bar(left: float, width: float, y: Axis, value: Value, colour: int) -> str:
    top, middle = y.at(value.y), left + width / 2
    rect = f'<rect x="{left + 1:.1f}" y="{top:.1f}" width="{width - 2:.1f}" height="{y.at(0) - top:.1f}"/>'
    low, high, cap = y.at(value.low), y.at(value.high), min(4.0, width / 4)
    whisker = f"M{middle:.1f},{low:.1f}V{high:.1f}M{middle - cap:.1f},{low:.1f}h{2 * cap:.1f}"
    whisker += f"M{middle - cap:.1f},{high:.1f}h{2 * cap:.1f}"
    title = f"<title>{escape(value.title)}</title>"
    return f'<g class="s{colour % COLOURS}">{title}{rect}<path class="whisker" d="{whisker}"/></g>'


def _line(line: Line, colour: int, x: Axis, y: Axis) -> str:
    def path(places: Sequence[tuple[float, float]]) -> str:
        return "M" + "L".join(f"{x.at(place):.1f},{y.at(height):.1f}" for place, height in places)

    points = line.points
    there = [(point.x, point.value.high) for point in points]
    back = [(point.x, point.value.low) for point in reversed(points)]
    band = "" if line.dashed or len(points) < 2 else f'<path class="band" d="{path(there + back)}Z"/>'
    kind = "line dashed" if line.dashed else "line"
    drawn = f'<path class="{kind}" d="{path([(point.x, point.value.y) for point in points])}"/>'
    dots = "" if line.dashed else "".join(_dot(point, x, y) for point in points)
    return f'<g class="s{colour % COLOURS}"><title>{escape(line.name)}</title>{band}{drawn}{dots}</g>'


def _dot(point: Point, x: Axis, y: Axis) -> str:
    place = f'cx="{x.at(point.x):.1f}" cy="{y.at(point.value.y):.1f}"'
    return f'<circle {place} r="3.5"><title>{escape(point.value.title)}</title></circle>'


def _apart(values: Sequence[float], x: Axis) -> list[float]:
    """Those of the values whose labels do not touch."""
    kept: list[float] = []
    for value in values:
        room = (len(short(value)) + 2) * CHARACTER
        if not kept or x.at(value) - x.at(kept[-1]) >= room:
            kept.append(value)
    return kept


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(width: float, height: float, parts: Sequence[str], label: str) -> str:
    size = f'viewBox="0 0 {width:.0f} {height}" width="{width:.0f}" height="{height}"'
    start = f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label={quoteattr(label)} {size}>'
    return "".join([start, *parts, "</svg>"])
