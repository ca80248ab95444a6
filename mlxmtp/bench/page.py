"""The report as one HTML file that needs nothing else: no script, no font, no network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from xml.sax.saxutils import escape

from mlxmtp.bench import svg, table
from mlxmtp.bench.svg import Line, Point, Value

Row = dict[str, Any]

LIGHT = ("#7d7d7d", "#3566b8", "#c0741f", "#2b8a57", "#a23b6d", "#6a4fb3", "#b5342c", "#1d8a99", "#8a7a1d", "#4a4a4a")
DARK = ("#a0a0a0", "#7aa7f0", "#eda65a", "#64c992", "#e685b3", "#ab93f0", "#f0857c", "#5cc8d6", "#cdbb55", "#d0d0d0")
STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --text: #1c1c1c; --faint: #d9d9d9; --soft: #666666; %(light)s }
@media (prefers-color-scheme: dark) {
  :root { --page: #16181c; --text: #e4e4e4; --faint: #3a3d44; --soft: #a0a0a0; %(dark)s }
}
body { background: var(--page); color: var(--text); font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto;
  max-width: 68rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; } .soft { color: var(--soft); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px; }
th, td { padding: 0.2rem 0.7rem; text-align: right; border-bottom: 1px solid var(--faint); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
.wide { overflow-x: auto; }
dt { float: left; clear: left; width: 6rem; color: var(--soft); } dd { margin-left: 6.5rem; }
svg { max-width: 100%%; height: auto; } svg text { font: 12px system-ui, sans-serif; fill: var(--text); }
.grid { stroke: var(--faint); } .axis { stroke: var(--soft); } .one { stroke: var(--soft); stroke-dasharray: 4 3; }
.line { fill: none; stroke-width: 2; } .dashed { stroke-dasharray: 5 4; } .band { stroke: none; opacity: 0.15; }
.whisker { stroke: var(--text); fill: none; }
.legend span { margin-right: 1.1rem; white-space: nowrap; }
.legend i { display: inline-block; width: 0.8rem; height: 0.8rem; margin-right: 0.35rem; vertical-align: -1px; }
%(series)s
"""


def as_html(report: Row) -> str:
    """The page of one report."""
    name = report["model"]["name"]
    partial = "" if report["complete"] else f" (partial: {report['measured']} of {report['planned']} measurements)"
    parts = [f"<h1>mlxmtp bench: {escape(name)}{partial}</h1>", about(report), summary(report)]
    for temperature in dict.fromkeys(row["temperature"] for row in report["speed"]):
        rows = [row for row in report["speed"] if row["temperature"] == temperature]
        parts += [f"<h2>Speed-up at temperature {temperature:g}</h2>", speed_plot(rows), speed_table(rows)]
    parts += [acceptance(report), costs(report), contexts(report)]
    return document(f"mlxmtp bench: {name}", parts)


def document(title: str, parts: Sequence[str]) -> str:
    """A page with our style around its parts."""
    colours = range(svg.COLOURS)
    style = STYLE % {
        "light": " ".join(f"--s{i}: {LIGHT[i]};" for i in colours),
        "dark": " ".join(f"--s{i}: {DARK[i]};" for i in colours),
        "series": "\n".join(
            f".s{i} rect, .s{i} circle, .s{i} .band {{ fill: var(--s{i}); }} .s{i} .line {{ stroke: var(--s{i}); }} "
            f"i.s{i} {{ background: var(--s{i}); }}"
            for i in colours
        ),
    }
    head = f'<meta charset="utf-8"/><meta name="viewport" content="width=device-width"/><title>{escape(title)}</title>'
    body = "\n".join(part for part in parts if part)
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}<style>{style}</style></head>\n<body>\n{body}\n</body></html>\n'
    )


def grid(rows: Sequence[Sequence[str]]) -> str:
    """A table; the first row is its head."""
    head, *rest = rows
    lines = ["<tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in head) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rest]
    return f'<div class="wide"><table>{"".join(lines)}</table></div>'


def about(report: Row) -> str:
    """What was measured, on what, with which command."""
    rows = [line.partition(" ") for line in table.about(report)]
    rows += [("command", " ", report["command"])] if report.get("command") else []
    rows += [("date", " ", report["date"])] if report.get("date") else []
    return "<dl>" + "".join(f"<dt>{escape(n)}</dt><dd>{escape(text.strip())}</dd>" for n, _, text in rows) + "</dl>"


def summary(report: Row) -> str:
    """Findings first: auto, identity, drift, notes."""
    rows = [f"<li>{escape(line.strip())}</li>" for line in table.remarks(report)]
    parts = ["<h2>Findings</h2>", f"<ul>{''.join(rows)}</ul>"]
    if report["auto"]:
        head = ["auto beside the best of plain and the fixed depths", "best", "auto to best"]
        body = [
            [f"{row['workload']}, temperature {row['temperature']:g}", row["best"], table.with_spread(row["share"])]
            for row in report["auto"]
        ]
        parts.append(grid([head, *body]))
    return "".join(parts)


def speed_plot(rows: Sequence[Row]) -> str:
    """Workloads beside each other, an arm a bar."""
    workloads = list(dict.fromkeys(row["workload"] for row in rows))
    arms = list(dict.fromkeys(row["arm"] for row in rows if row["arm"] != "mlx-lm"))
    found = {(row["workload"], row["arm"]): row for row in rows}
    values = [[_value(found.get((w, arm)), "ratio", f"{w}, {arm}") for arm in arms] for w in workloads]
    drawn = svg.bars(workloads, arms, values, "times mlx-lm's plain decoding", one=True, first=1)
    return f'<div class="wide">{drawn}</div>{svg.legend(arms, first=1)}' if drawn else ""


def speed_table(rows: Sequence[Row]) -> str:
    """All figures of the workloads."""
    head = ["workload, arm", "tok/s", "to mlx-lm", "to ours plain", "tokens a round", "accepted by depth"]
    head += ["ideal", "reached", "TTFT s"]
    body = [
        [
            f"{row['workload']}, {row['arm']}",
            table.with_spread(row["rate"]),
            table.with_spread(row["ratio"]),
            table.with_spread(row["ratio_to_plain"]),
            table.number(row["tokens_per_round"], 2),
            " ".join(f"{share:.2f}" for share in row["acceptance"]) or table.NONE,
            table.with_spread(row["ideal"]),
            table.with_spread(row["reached"]),
            table.number(table.median(row["ttft_s"]), 3),
        ]
        for row in rows
    ]
    told = [*table.EXPLAINED, *(f"{row['workload']}: {table.chosen(row)}" for row in rows if row["policy"])]
    return grid([head, *body]) + "".join(f'<p class="soft">{escape(line)}</p>' for line in told)


def acceptance(report: Row) -> str:
    """By depth, of the deepest fixed arm, which says most."""
    fixed = {int(r["arm"].split()[1]) for r in report["speed"] if r["arm"].startswith("depth ") and r["acceptance"]}
    if not fixed:
        return ""
    deepest = max(fixed)
    series = []
    for row in report["speed"]:
        if row["arm"] == f"depth {deepest}":
            name = f"{row['workload']}, temperature {row['temperature']:g}"
            shares = enumerate(row["acceptance"], start=1)
            points = [Point(k, Value(s, s, s, f"{name}: {s:.2f} at depth {k}")) for k, s in shares]
            series.append(Line(name, tuple(points)))
    drawn = svg.lines(series, "depth of the draft", f"share that stood, drafting {deepest}", top=1.0)
    return f"<h2>Acceptance by depth</h2>{drawn}{svg.legend([line.name for line in series])}"


def costs(report: Row) -> str:
    """C(m), with the line on which rows would save nothing."""
    if not report["costs"]:
        return ""
    series = []
    for cost in report["costs"]:
        name = table.priced(cost).removeprefix("cost ")
        found = enumerate(cost["curve"], start=1)
        points = [Point(m, Value(c, c, c, f"{name}: C({m}) = {c:.2f}")) for m, c in found]
        series.append(Line(name, tuple(points)))
    most = len(report["costs"][0]["curve"])
    alone = Line("m passes over one row", tuple(Point(m, Value(m, m, m)) for m in (1, most)), dashed=True)
    drawn = svg.lines([*series, alone], "rows of a pass", "time, in passes over one row")
    head = ["context", "one row ms", "C(2), C(3), ...", "draft step, in passes", "draft step ms", "other ms"]
    body = [
        [
            table.priced(cost).removeprefix("cost at "),
            f"{cost['rows_s'][0] * 1e3:.2f}",
            " ".join(f"{value:.2f}" for value in cost["curve"][1:]),
            f"{cost['draft']:.2f}",
            f"{cost['draft_s'] * 1e3:.2f}",
            f"{cost['other_s'] * 1e3:.2f}",
        ]
        for cost in report["costs"]
    ]
    legend = svg.legend([line.name for line in (*series, alone)])
    return f"<h2>Cost of a pass by its rows</h2>{drawn}{legend}{grid([head, *body])}"


def contexts(report: Row) -> str:
    """Decoding, reading and memory over the length of context."""
    if not report["contexts"]:
        return ""
    arms = [arm["arm"] for arm in report["contexts"][0]["arms"]]
    rates = [Line(arm, _over_context(report, arm, "rate", "tok/s")) for arm in arms]
    prefill = [Line(who, _prefill(report, who)) for who in report["contexts"][0]["prefill_rate"]]
    first = [Line(arm, _over_context(report, arm, "ttft_s", "s")) for arm in arms]
    memory = [
        Line(arm["arm"], tuple(Point(r["context"], _gigabytes(r["arms"][i])) for r in report["contexts"]))
        for i, arm in enumerate(report["contexts"][0]["arms"])
    ]
    where = "tokens of context"
    parts = ["<h2>Over the length of context, greedy</h2>"]
    for series, label in ((rates, "tok/s"), (first, "seconds to the first token"), (prefill, "prefill tok/s")):
        parts += [svg.lines(series, where, label, log_x=True), svg.legend([line.name for line in series])]
    parts += [svg.lines(memory, where, "peak memory, GB", log_x=True), svg.legend([line.name for line in memory])]
    cells = [line for row in report["contexts"] for line in _context_rows(row)]
    head = ["context, arm", "tok/s", "to mlx-lm", "tokens a round", "TTFT s", "prefill tok/s", "peak memory GB"]
    return "".join([*parts, grid([head, *cells])])


def _context_rows(row: Row) -> list[list[str]]:
    lines = []
    for arm in row["arms"]:
        prefill = row["prefill_rate"].get("mlx-lm" if arm["arm"] == "mlx-lm" else "ours")
        cells = [f"{row['context']}, {arm['arm']}", table.with_spread(arm["rate"]), table.with_spread(arm["ratio"])]
        cells += [table.number(arm["tokens_per_round"], 2), table.with_spread(arm["ttft_s"])]
        lines.append([*cells, table.number(table.median(prefill), 0), f"{arm['peak_bytes'] / 1e9:.2f}"])
    return lines


def _over_context(report: Row, arm: str, part: str, unit: str) -> tuple[Point, ...]:
    points = []
    for row in report["contexts"]:
        found = next((one for one in row["arms"] if one["arm"] == arm), None)
        if value := _value(found, part, f"{arm} at {row['context']}, {unit}"):
            points.append(Point(row["context"], value))
    return tuple(points)


def _prefill(report: Row, who: str) -> tuple[Point, ...]:
    found = ((row["context"], _value(row["prefill_rate"], who, who)) for row in report["contexts"])
    return tuple(Point(context, value) for context, value in found if value)


def _gigabytes(arm: Row) -> Value:
    size = arm["peak_bytes"] / 1e9
    return Value(size, size, size, f"{arm['arm']}: {size:.2f} GB")


def _value(row: Row | None, part: str, name: str) -> Value | None:
    found = row.get(part) if row else None
    if not found:
        return None
    return Value(found["median"], found["low"], found["high"], f"{name}: {table.with_spread(found)}")
