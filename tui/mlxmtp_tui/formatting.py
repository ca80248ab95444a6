"""Statistics as text: pure functions for the line under a turn, the panel and the plots."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from mlxmtp.decoding.stats import Stats
from mlxmtp.units import size
from mlxmtp.worker.messages import Comparison

EIGHTHS = " ▏▎▍▌▋▊▉█"
"""Cells that are filled from the left, by eighths."""
RISING = " ▁▂▃▄▅▆▇█"
"""Cells that are filled from below, by eighths."""
SHADES = {"draft": "░", "verify": "█", "other": "▒"}
"""The phases of a round; they differ without colour too."""
SHOWN_DEPTHS = 3
"""Depths whose acceptance is shown under a turn."""
MUTED = "$foreground 60%"
"""The style of labels. $text-muted depends on the background, so it cannot style a part of a text."""


def turn_line(stats: Stats | None, reason: str, speedup: float | None = None) -> str:
    """The statistics under a turn."""
    endings = {"length": "token limit reached", "interrupted": "stopped", "failed": "broken off"}
    parts = [endings.get(reason, "")]
    if stats:
        parts += [f"{stats.tokens:,} tok", f"{stats.decode_tps:.1f} tok/s" if stats.decode_tps else ""]
        parts += [f"{speedup:.2f}× plain" if speedup else ""]
        if stats.drafted:
            first = stats.acceptance_by_depth[:SHOWN_DEPTHS]  # the panel has them all
            by_depth = " ".join(f"d{i} {_share(share)}" for i, share in enumerate(first, start=1))
            parts += [f"{stats.tokens_per_round:.1f} tok/round", by_depth]
        parts += [f"text {stats.looked_up_accepted}/{stats.looked_up}" if stats.looked_up else ""]
        parts += [f"ttft {stats.ttft_s:.2f} s", f"peak {size(stats.peak_memory_bytes)}"]
    return " · ".join(part for part in parts if part)


def _share(share: float) -> str:
    return f"{share:.2f}".replace("0.", ".", 1)


def bar(share: float, width: int) -> str:
    """A horizontal bar of `width` cells, filled to `share` (0 to 1), to an eighth of a cell."""
    eighths = round(min(max(share, 0.0), 1.0) * width * 8)
    full, rest = divmod(eighths, 8)
    return ("█" * full + (EIGHTHS[rest] if rest else "")).ljust(width)


def stacked(parts: dict[str, float], width: int) -> dict[str, str]:
    """The cells of each part of one bar. By the method of largest remainders they add up to `width`."""
    total = sum(parts.values())
    if total <= 0:
        return dict.fromkeys(parts, "")
    exact = {name: value / total * width for name, value in parts.items()}
    cells = {name: int(value) for name, value in exact.items()}
    for name in sorted(parts, key=lambda name: cells[name] - exact[name])[: width - sum(cells.values())]:
        cells[name] += 1
    return {name: SHADES[name] * count for name, count in cells.items()}


def sparkline(values: Sequence[float], width: int) -> str:
    """The values as columns from zero to their maximum; averages where there are more values than columns."""
    if not values:
        return ""
    if len(values) > width:
        edges = [round(i * len(values) / width) for i in range(width + 1)]
        values = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    top = max(values)
    if top <= 0:
        return RISING[1] * len(values)
    return "".join(RISING[max(1, round(value / top * 8))] for value in values)


def columns(values: Sequence[float | None], top: float, height: int) -> list[str]:
    """The lines of columns that are `height` lines high, from zero to `top`; None leaves a gap."""
    lines = []
    for line in range(height, 0, -1):
        filled = [
            0 if v is None or top <= 0 else min(max(round((v / top * height - line + 1) * 8), 0), 8) for v in values
        ]
        lines.append("".join(RISING[eighths] for eighths in filled))
    return lines


def plot(
    values: Sequence[float | None], width: int, height: int, top: float | None = None, unit: str = ""
) -> list[str]:
    """The lines of a plot: a column for each of the newest values, the scale at the left."""
    known = [value for value in values if value is not None]
    if not known:
        return []
    scale = top or max(known)
    labels = [f"{scale:.{0 if scale >= 10 else 1}f}{unit}", *[""] * (height - 2), "0"]
    margin = max(map(len, labels))
    drawn = columns(list(values)[-(width - margin - 2) :], scale, height)
    return [f"{label:>{margin}} ┤{line}" for label, line in zip(labels, drawn, strict=True)]


def context(used: int, limit: int) -> str:
    return f"{used:,} of {limit:,} tokens" if limit < 2**31 - 1 else f"{used:,} tokens"


def promise(*, speculates: bool, identical: bool, greedy: bool, seeded: bool, canonical: bool = False) -> str:
    """What holds of the text against plain decoding; `canonical`: against plain decoding at the canonical width."""
    if not speculates:
        return "plain decoding"
    if not (greedy or seeded):
        return "same distribution as plain"
    if identical:
        return "token-identical to plain" + (" at canonical width" if canonical else "")
    return "same distribution; near-ties may differ"


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def measurement(comparison: Comparison, head: str | None) -> str:
    """The result of `/bench`, in a line or two."""

    def rates(values: list[float]) -> str:
        middle = sorted(values)[len(values) // 2]
        return f"{middle:.1f} tok/s ({min(values):.1f} to {max(values):.1f})"

    runs = f"Measured on this chat, {len(comparison.plain)} runs each, in turn."
    plain = f"{runs} Plain, by mlx-lm: {rates(comparison.plain)}."
    if head is None or comparison.depth == 0:
        return f"{plain} mlxmtp, plain too: {rates(comparison.mtp)}."
    ratios = sorted(ours / theirs for ours, theirs in zip(comparison.mtp, comparison.plain, strict=True))
    spread = f"{ratios[len(ratios) // 2]:.2f}× ({ratios[0]:.2f} to {ratios[-1]:.2f})"
    depth = "auto" if comparison.depth is None else comparison.depth
    return f"{plain} With MTP, depth {depth}: {rates(comparison.mtp)}. That is {spread}."
