"""Compare two reports: which rates and costs changed, and which conditions differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from mlxmtp.bench import page, svg, table
from mlxmtp.bench.figures import Spread
from mlxmtp.bench.svg import PlotLine, PlotPoint, PlotValue
from mlxmtp.errors import OptionError
from mlxmtp.files import read_json

Row = dict[str, Any]
"""An object of a report's JSON."""
REPORT = "report.json"
ENOUGH = 3
"""Least number of runs for a spread to count. With fewer, no change is marked as beyond the spread."""


def load_report(path: Path) -> Row:
    """Return a report, from its JSON file or from the folder that holds one; of `mlxmtp report`, its benchmark.

    Raises:
        OptionError: the file is missing, is not a report, or has another schema.
    """
    file = path / REPORT if path.is_dir() else path
    try:
        report = read_json(file)
    except OSError as error:
        raise OptionError(f"{file}: {error.strerror or error}; expected a report of `mlxmtp bench`") from error
    except ValueError as error:
        raise OptionError(f"{file}: not JSON ({error}); expected a report of `mlxmtp bench`") from error
    if isinstance(report, dict) and "parts" in report:
        report = report["parts"].get("bench") if isinstance(report["parts"], dict) else None
    if not isinstance(report, dict) or not {"schema", "speed", "contexts", "costs", "settings"} <= set(report):
        raise OptionError(f"{file}: not a report of `mlxmtp bench`; expected its {REPORT}")
    if report["schema"] != 1:
        raise OptionError(f"{file}: a report of schema {report['schema']!r}; expected 1: measure again")
    return report


def compare(before: Row, after: Row) -> Row:
    """Return the comparison: rates and ratios to mlx-lm of each shared arm, C(m), and the conditions that differ."""
    old, new = _arms(before), _arms(after)
    rows = []
    for where in new:
        if where in old:
            rate, ratio = (_change(old[where][field], new[where][field]) for field in ("rate", "ratio"))
            rows.append({"where": where[0], "arm": where[1], "rate": rate, "ratio": ratio})
    costs = {cost["where"]: cost for cost in before["costs"]}
    shared = [(costs[cost["where"]], cost) for cost in after["costs"] if cost["where"] in costs]
    return {
        "schema": 1,
        "conditions": _conditions(before, after),
        "arms": rows,
        "only_before": _without(old, new),
        "only_after": _without(new, old),
        "costs": [{"where": one["where"], "before": one, "after": other} for one, other in shared],
    }


def as_text(comparison: Row) -> str:
    """Return the comparison as text for a terminal."""
    lines = [f"{name}: {one} -> {other}" for name, (one, other) in comparison["conditions"].items()]
    rows = [["", "tok/s before", "after", "change", "to mlx-lm before", "after", "change"]]
    for row in comparison["arms"]:
        cells = [f"{row['where']}, {row['arm']}"]
        for field, digits in (("rate", 1), ("ratio", 2)):
            cells += _cells(row[field], digits)
        rows.append(cells)
    blocks = [lines, table.aligned(rows) if comparison["arms"] else ["the two reports have no run in common"]]
    blocks.append([_cost_line(cost) for cost in comparison["costs"]])
    for name, which in (("only_before", "first"), ("only_after", "second")):
        unshared = "; ".join(f"{where} ({', '.join(arms)})" for where, arms in comparison[name].items())
        blocks.append([f"only in the {which}: {unshared}"] if unshared else [])
    if comparison["arms"]:
        blocks.append([f"* beyond the spread of both: {ENOUGH} runs or more each, with no overlap"])
    return "\n\n".join("\n".join(block) for block in blocks if block)


def as_html(comparison: Row) -> str:
    """Return the comparison as a page: changes as bars, and both cost curves."""
    pairs = comparison["conditions"].items()
    conditions = [f"<li>{escape(f'{name}: {one} -> {other}')}</li>" for name, (one, other) in pairs]
    sections = ["<h1>mlxmtp bench: two reports</h1>", f"<ul>{''.join(conditions)}</ul>" if conditions else ""]
    wheres = list(dict.fromkeys(row["where"] for row in comparison["arms"]))
    arms = list(dict.fromkeys(row["arm"] for row in comparison["arms"]))
    rates = {(row["where"], row["arm"]): row["rate"] for row in comparison["arms"]}
    values = [[_bar(rates.get((where, arm)), f"{where}, {arm}") for arm in arms] for where in wheres]
    drawn = svg.bars(wheres, arms, values, "tok/s after, in times before", one=True) if comparison["arms"] else ""
    if drawn:
        sections += ["<h2>Speed</h2>", f'<div class="wide">{drawn}</div>', svg.legend(arms)]
    series = [_curve(cost, which) for cost in comparison["costs"] for which in ("before", "after")]
    if series:
        sections += ["<h2>Cost of a pass by its rows</h2>", svg.lines(series, "rows of a pass", "milliseconds")]
        sections.append(svg.legend([line.name for line in series]))
    return page.document("mlxmtp bench: two reports", [*sections, f"<pre>{escape(as_text(comparison))}</pre>"])


def _arms(report: Row) -> dict[tuple[str, str], Row]:
    """Return the rows of a report by (where, arm)."""
    rows = {(f"{r['workload']} at {r['temperature']:g}", r["arm"]): r for r in report["speed"]}
    for context in report["contexts"]:
        rows |= {(f"context {context['context']}", arm["arm"]): arm for arm in context["arms"]}
    return rows


def _without(some: Mapping[tuple[str, str], Row], others: Mapping[tuple[str, str], Row]) -> dict[str, list[str]]:
    """Return the arms, by where, that the others lack."""
    lacking: dict[str, list[str]] = {}
    for where, arm in some:
        if (where, arm) not in others:
            lacking.setdefault(where, []).append(arm)
    return lacking


def _change(before: Row | None, after: Row | None) -> Row | None:
    """Return the change between two spreads, or None where either was not measured."""
    if not before or not after:
        return None
    one, other = Spread(**before), Spread(**after)
    apart = min(one.count, other.count) >= ENOUGH and (one.high < other.low or other.high < one.low)
    return {"before": before, "after": after, "change": other.median / one.median - 1, "apart": apart}


def _conditions(before: Row, after: Row) -> dict[str, tuple[Any, Any]]:
    """Return the values of both reports for each condition that differs, by its name."""
    differing: dict[str, tuple[Any, Any]] = {}
    if not (before["complete"] and after["complete"]):
        one, other = (f"{report['measured']} of {report['planned']}" for report in (before, after))
        differing["measured"] = one, other
    for section in ("model", "machine", "versions", "settings", "prompts"):
        old: Mapping[str, Any] = before.get(section, {})
        new: Mapping[str, Any] = after.get(section, {})
        for name in dict.fromkeys((*old, *new)):
            if old.get(name) != new.get(name):
                differing[f"{section} {name}"] = old.get(name), new.get(name)
    return differing


def _cells(change: Row | None, digits: int) -> Sequence[str]:
    if change is None:
        return [table.NONE] * 3
    sign = "*" if change["apart"] else " "
    both = [table.number(change[which]["median"], digits) for which in ("before", "after")]
    return [*both, f"{change['change']:+.1%}{sign}"]


def _cost_line(cost: Row) -> str:
    one, other = (
        f"{cost[which]['rows_s'][0] * 1e3:.2f} ms a row, C(m) "
        + " ".join(f"{value:.2f}" for value in cost[which]["curve"])
        + f", draft {cost[which]['draft_s'] * 1e3:.2f} ms"
        for which in ("before", "after")
    )
    return f"{table.priced(cost['after'])}:\n  before {one}\n  after  {other}"


def _bar(change: Row | None, name: str) -> PlotValue | None:
    if change is None:
        return None
    base = change["before"]["median"]
    middle, low, high = (change["after"][field] / base for field in ("median", "low", "high"))
    return PlotValue(middle, low, high, f"{name}: {change['change']:+.1%}")


def _curve(cost: Row, which: str) -> PlotLine:
    name = f"{cost['where']}, {which}"
    times = [seconds * 1e3 for seconds in cost[which]["rows_s"]]
    points = (PlotPoint(m, PlotValue(t, t, t, f"{name}: {m} rows {t:.2f} ms")) for m, t in enumerate(times, start=1))
    return PlotLine(name, tuple(points))
