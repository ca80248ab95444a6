"""Plots as inline SVG: bars with whiskers, and lines with bands. The page's CSS gives each colour class its colour."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr

LEFT, RIGHT, TOP, BOTTOM = 62, 16, 16, 52
"""Margins around the plot area, in pixels."""
CHARACTER = 6.6
"""Mean width of a letter of a label, in pixels. Labels are left out where they would touch."""
COLOURS = 10
"""Number of colour classes. A plot with more series uses them again."""


@dataclass(frozen=True)
class PlotValue:
    """A measured value.

    Args:
        y: the value, the centre of the range.
        low, high: ends of the range.
        title: text of the tooltip.
    """

    y: float
    low: float
    high: float
    title: str = ""


@dataclass(frozen=True)
class PlotPoint:
    """A value at a position on the x axis."""

    x: float
    value: PlotValue


@dataclass(frozen=True)
class PlotLine:
    """A named series of points in order of x. A dashed line is a reference, not a measurement."""

    name: str
    points: tuple[PlotPoint, ...]
    dashed: bool = False


@dataclass(frozen=True)
class PlotAxis:
    """A linear or logarithmic (base 2) axis.

    Args:
        low, high: values at its ends.
        start, end: pixels at its ends. On a y axis `start` is the larger.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """Return the pixel of a value."""
        low, high, value = (math.log2(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (value - low) / ((high - low) or 1.0) * (self.end - self.start)


def bars(
    groups: Sequence[str],
    names: Sequence[str],
    values: Sequence[Sequence[PlotValue | None]],
    y_label: str,
    *,
    one: bool = False,
    first: int = 0,
) -> str:
    """Return groups of bars side by side, each bar with a whisker over its range. Without values, return "".

    Args:
        groups: labels below the x axis.
        names: names of the bars in each group.
        values: [group][name]. None leaves a gap.
        one: draw a line across at y = 1.
        first: colour class of the first name.
    """
    known = [value for row in values for value in row if value]
    if not known:
        return ""
    width = max(480, LEFT + RIGHT + len(groups) * max(64, 16 * len(names) + 14))
    height, ticks = 320, nice_ticks(0, max(1.0 if one else 0.0, *(v.high for v in known)))
    y = PlotAxis(0, ticks[-1], height - BOTTOM, TOP)
    step = (width - LEFT - RIGHT) / len(groups)
    elements = [_frame(width, height, y, ticks, y_label)]
    for i, (group, row) in enumerate(zip(groups, values, strict=True)):
        left, bar = LEFT + i * step, (step - 14) / len(names)
        elements.append(_text(left + step / 2, height - BOTTOM + 18, group, "middle"))
        for j, value in enumerate(row):
            if value:
                elements.append(_bar(left + 7 + j * bar, bar, y, value, first + j))
    if one:
        elements.append(f'<path class="one" d="M{LEFT},{y.at(1):.1f}H{width - RIGHT}"/>')
    return _svg(width, height, elements, f"{y_label}: {', '.join(names)}")


def lines(
    series: Sequence[PlotLine], x_label: str, y_label: str, *, log_x: bool = False, top: float | None = None
) -> str:
    """Return lines with points, and bands over their ranges. Without points, return "". The y axis begins at 0.

    Args:
        log_x: the x axis is logarithmic.
        top: lowest end of the y axis.
    """
    points = [point for line in series for point in line.points]
    if not points:
        return ""
    width, height = 620, 320
    xs = sorted({point.x for point in points})
    ticks = nice_ticks(0, max(top or 0.0, *(point.value.high for point in points)))
    margin = 0.0 if log_x else 0.25
    x = PlotAxis(xs[0] - margin, xs[-1] + margin, LEFT + 12, width - RIGHT - 12, log_x)
    y = PlotAxis(0, ticks[-1], height - BOTTOM, TOP)
    elements = [_frame(width, height, y, ticks, y_label)]
    elements += [_text(x.at(value), height - BOTTOM + 18, short(value), "middle") for value in _labelled(xs, x)]
    elements.append(_text((LEFT + width - RIGHT) / 2, height - 12, x_label, "middle"))
    elements += [_line(line, i, x, y) for i, line in enumerate(series)]
    return _svg(width, height, elements, f"{y_label} against {x_label}")


def legend(names: Sequence[str], first: int = 0) -> str:
    """Return the names with their colours as HTML."""
    items = (f'<span><i class="s{i % COLOURS}"></i>{escape(name)}</span>' for i, name in enumerate(names, first))
    return f'<p class="legend">{"".join(items)}</p>'


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return about `count` round numbers that cover `low` to `high`."""
    if high <= low:
        high = low + 1.0
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def short(value: float) -> str:
    """Return a number as a label: 4096 is "4k", 0.25 is "0.25"."""
    if value >= 1024 and value % 1024 == 0:
        return f"{value / 1024:g}k"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _frame(width: float, height: float, y: PlotAxis, ticks: Sequence[float], label: str) -> str:
    """Return the grid lines with their numbers, the x axis, and the label of the y axis."""
    elements = []
    for tick in ticks:
        elements.append(f'<path class="grid" d="M{LEFT},{y.at(tick):.1f}H{width - RIGHT}"/>')
        elements.append(_text(LEFT - 6, y.at(tick) + 4, short(tick), "end"))
    middle = (TOP + height - BOTTOM) / 2
    elements.append(f'<path class="axis" d="M{LEFT},{height - BOTTOM}H{width - RIGHT}"/>')
    elements.append(f'<text x="14" y="{middle:.1f}" text-anchor="middle" transform="rotate(-90 14 {middle:.1f})">')
    return "".join([*elements, escape(label), "</text>"])


def _bar(left: float, width: float, y: PlotAxis, value: PlotValue, colour: int) -> str:
    top, middle = y.at(value.y), left + width / 2
    rect = f'<rect x="{left + 1:.1f}" y="{top:.1f}" width="{width - 2:.1f}" height="{y.at(0) - top:.1f}"/>'
    low, high, cap = y.at(value.low), y.at(value.high), min(4.0, width / 4)
    whisker = f"M{middle:.1f},{low:.1f}V{high:.1f}M{middle - cap:.1f},{low:.1f}h{2 * cap:.1f}"
    whisker += f"M{middle - cap:.1f},{high:.1f}h{2 * cap:.1f}"
    title = f"<title>{escape(value.title)}</title>"
    return f'<g class="s{colour % COLOURS}">{title}{rect}<path class="whisker" d="{whisker}"/></g>'


def _line(line: PlotLine, colour: int, x: PlotAxis, y: PlotAxis) -> str:
    def path(coordinates: Sequence[tuple[float, float]]) -> str:
        return "M" + "L".join(f"{x.at(one):.1f},{y.at(other):.1f}" for one, other in coordinates)

    points = line.points
    upper = [(point.x, point.value.high) for point in points]
    lower = [(point.x, point.value.low) for point in reversed(points)]
    band = "" if line.dashed or len(points) < 2 else f'<path class="band" d="{path(upper + lower)}Z"/>'
    style = "line dashed" if line.dashed else "line"
    drawn = f'<path class="{style}" d="{path([(point.x, point.value.y) for point in points])}"/>'
    dots = "" if line.dashed else "".join(_dot(point, x, y) for point in points)
    return f'<g class="s{colour % COLOURS}"><title>{escape(line.name)}</title>{band}{drawn}{dots}</g>'


def _dot(point: PlotPoint, x: PlotAxis, y: PlotAxis) -> str:
    centre = f'cx="{x.at(point.x):.1f}" cy="{y.at(point.value.y):.1f}"'
    return f'<circle {centre} r="3.5"><title>{escape(point.value.title)}</title></circle>'


def _labelled(values: Sequence[float], x: PlotAxis) -> list[float]:
    """Return the values whose labels do not touch."""
    labelled: list[float] = []
    for value in values:
        room = (len(short(value)) + 2) * CHARACTER
        if not labelled or x.at(value) - x.at(labelled[-1]) >= room:
            labelled.append(value)
    return labelled


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(width: float, height: float, elements: Sequence[str], label: str) -> str:
    size = f'viewBox="0 0 {width:.0f} {height}" width="{width:.0f}" height="{height}"'
    start = f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label={quoteattr(label)} {size}>'
    return "".join([start, *elements, "</svg>"])
