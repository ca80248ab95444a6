"""Two reports beside each other: what became faster, what slower, and what was different about them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from mlxmtp.bench import page, svg, table
from mlxmtp.bench.figures import Spread
from mlxmtp.bench.svg import Line, Point, Value
from mlxmtp.errors import OptionError

Row = dict[str, Any]
REPORT = "report.json"
ENOUGH = 3
"""Values before their spread says something."""


def load_report(path: Path) -> Row:
    """A report's JSON, or the one in a folder.

    Raises:
        OptionError: there is none.
    """
    file = path / REPORT if path.is_dir() else path
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise OptionError(f"{file}: {error.strerror or error}; expected a report of `mlxmtp bench`") from error
    except ValueError as error:
        raise OptionError(f"{file}: not JSON ({error}); expected a report of `mlxmtp bench`") from error
    if not isinstance(report, dict) or not {"schema", "speed", "contexts", "costs", "settings"} <= set(report):
        raise OptionError(f"{file}: not a report of `mlxmtp bench`; expected its {REPORT}")
    if report["schema"] != 1:
        raise OptionError(f"{file}: a report of schema {report['schema']!r}; expected 1: measure again")
    return report


def compare(before: Row, after: Row) -> Row:
    """What both have: rates and ratios to mlx-lm of each arm, C(m); and which of their conditions differ."""
    old, new = _arms(before), _arms(after)
    rows = []
    for where in new:
        if where in old:
            rate, ratio = (_change(old[where][part], new[where][part]) for part in ("rate", "ratio"))
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


def as_text(found: Row) -> str:
    """For a terminal."""
    lines = [f"{name}: {one} -> {other}" for name, (one, other) in found["conditions"].items()]
    rows = [["", "tok/s before", "after", "change", "to mlx-lm before", "after", "change"]]
    for row in found["arms"]:
        cells = [f"{row['where']}, {row['arm']}"]
        for part, digits in (("rate", 1), ("ratio", 2)):
            cells += _cells(row[part], digits)
        rows.append(cells)
    parts = [lines, table.aligned(rows) if found["arms"] else ["the two reports have no run in common"]]
    parts.append([_cost_line(cost) for cost in found["costs"]])
    for name, which in (("only_before", "first"), ("only_after", "second")):
        alone = "; ".join(f"{where} ({', '.join(arms)})" for where, arms in found[name].items())
        parts.append([f"only in the {which}: {alone}"] if alone else [])
    parts.append([f"* beyond the spread of both: {ENOUGH} runs or more each, with no overlap"] if found["arms"] else [])
    return "\n\n".join("\n".join(part) for part in parts if part)


def as_html(found: Row) -> str:
    """As a page: changes as bars, both cost curves."""
    conditions = [f"<li>{escape(f'{n}: {one} -> {other}')}</li>" for n, (one, other) in found["conditions"].items()]
    parts = ["<h1>mlxmtp bench: two reports</h1>", f"<ul>{''.join(conditions)}</ul>" if conditions else ""]
    wheres = list(dict.fromkeys(row["where"] for row in found["arms"]))
    arms = list(dict.fromkeys(row["arm"] for row in found["arms"]))
    of = {(row["where"], row["arm"]): row["rate"] for row in found["arms"]}
    values = [[_bar(of.get((where, arm)), f"{where}, {arm}") for arm in arms] for where in wheres]
    drawn = svg.bars(wheres, arms, values, "tok/s after, in times before", one=True) if found["arms"] else ""
    if drawn:
        parts += ["<h2>Speed</h2>", f'<div class="wide">{drawn}</div>', svg.legend(arms)]
    series = [_curve(cost, which) for cost in found["costs"] for which in ("before", "after")]
    if series:
        parts += ["<h2>Cost of a pass by its rows</h2>", svg.lines(series, "rows of a pass", "milliseconds")]
        parts.append(svg.legend([line.name for line in series]))
    return page.document("mlxmtp bench: two reports", [*parts, f"<pre>{escape(as_text(found))}</pre>"])


def _arms(report: Row) -> dict[tuple[str, str], Row]:
    """Rows by (where, arm)."""
    found = {(f"{r['workload']} at {r['temperature']:g}", r["arm"]): r for r in report["speed"]}
    for context in report["contexts"]:
        found |= {(f"context {context['context']}", arm["arm"]): arm for arm in context["arms"]}
    return found


def _without(some: Mapping[tuple[str, str], Row], others: Mapping[tuple[str, str], Row]) -> dict[str, list[str]]:
    """What is not among the others: arms by where."""
    found: dict[str, list[str]] = {}
    for where, arm in some:
        if (where, arm) not in others:
            found.setdefault(where, []).append(arm)
    return found


def _change(before: Row | None, after: Row | None) -> Row | None:
    """None where either was not measured."""
    if not before or not after:
        return None
    one, other = Spread(**before), Spread(**after)
    apart = min(one.count, other.count) >= ENOUGH and (one.high < other.low or other.high < one.low)
    return {"before": before, "after": after, "change": other.median / one.median - 1, "apart": apart}


def _conditions(before: Row, after: Row) -> dict[str, tuple[Any, Any]]:
    """What was not the same, by its name."""
    found: dict[str, tuple[Any, Any]] = {}
    if not (before["complete"] and after["complete"]):
        one, other = (f"{report['measured']} of {report['planned']}" for report in (before, after))
        found["measured"] = one, other
    for part in ("model", "machine", "versions", "settings", "prompts"):
        old: Mapping[str, Any] = before.get(part, {})
        new: Mapping[str, Any] = after.get(part, {})
        for name in dict.fromkeys((*old, *new)):
            if old.get(name) != new.get(name):
                found[f"{part} {name}"] = old.get(name), new.get(name)
    return found


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


def _bar(change: Row | None, name: str) -> Value | None:
    if change is None:
        return None
    base = change["before"]["median"]
    middle, low, high = (change["after"][part] / base for part in ("median", "low", "high"))
    return Value(middle, low, high, f"{name}: {change['change']:+.1%}")


def _curve(cost: Row, which: str) -> Line:
    name = f"{cost['where']}, {which}"
    times = [seconds * 1e3 for seconds in cost[which]["rows_s"]]
    points = (Point(m, Value(t, t, t, f"{name}: {m} rows {t:.2f} ms")) for m, t in enumerate(times, start=1))
    return Line(name, tuple(points))
