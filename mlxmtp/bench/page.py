"""The report as one self-contained HTML file: no script, no font, no network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from xml.sax.saxutils import escape

from mlxmtp.bench import svg, table
from mlxmtp.bench.svg import PlotLine, PlotPoint, PlotValue

Row = dict[str, Any]
"""An object of the report's JSON."""

LIGHT = ("#7d7d7d", "#3566b8", "#c0741f", "#2b8a57", "#a23b6d", "#6a4fb3", "#b5342c", "#1d8a99", "#8a7a1d", "#4a4a4a")
DARK = ("#a0a0a0", "#7aa7f0", "#eda65a", "#64c992", "#e685b3", "#ab93f0", "#f0857c", "#5cc8d6", "#cdbb55", "#d0d0d0")
"""Colours of the series, for light and for dark pages: one for each of `svg.COLOURS`."""
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
    """Return the page of one report."""
    name = report["model"]["name"]
    partial = "" if report["complete"] else f" (partial: {report['measured']} of {report['planned']} measurements)"
    return document(f"mlxmtp bench: {name}", [f"<h1>mlxmtp bench: {escape(name)}{partial}</h1>", *body(report)])


def body(report: Row) -> list[str]:
    """Return the sections of a page below its title."""
    sections = [about(report), summary(report)]
    for temperature in dict.fromkeys(row["temperature"] for row in report["speed"]):
        rows = [row for row in report["speed"] if row["temperature"] == temperature]
        sections += [f"<h2>Speed-up at temperature {temperature:g}</h2>", speed_plot(rows), speed_table(rows)]
    return [*sections, acceptance(report), costs(report), contexts(report)]


def document(title: str, sections: Sequence[str]) -> str:
    """Return an HTML document with the style sheet around the sections."""
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
    body = "\n".join(section for section in sections if section)
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}<style>{style}</style></head>\n<body>\n{body}\n</body></html>\n'
    )


def grid(rows: Sequence[Sequence[str]]) -> str:
    """Return a table. The first row is its head."""
    head, *rest = rows
    lines = ["<tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in head) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rest]
    return f'<div class="wide"><table>{"".join(lines)}</table></div>'


def about(report: Row) -> str:
    """Return the list of what was measured, on which machine, with which command."""
    rows = [line.partition(" ") for line in table.about(report)]
    rows += [("command", " ", report["command"])] if report.get("command") else []
    rows += [("date", " ", report["date"])] if report.get("date") else []
    return "<dl>" + "".join(f"<dt>{escape(n)}</dt><dd>{escape(text.strip())}</dd>" for n, _, text in rows) + "</dl>"


def summary(report: Row) -> str:
    """Return the findings: equal tokens, drift, notes, and auto against the best other arm."""
    rows = [f"<li>{escape(line.strip())}</li>" for line in table.remarks(report)]
    sections = ["<h2>Findings</h2>", f"<ul>{''.join(rows)}</ul>"]
    if report["auto"]:
        head = ["auto beside the best of plain and the fixed depths", "best", "auto to best"]
        body = [
            [f"{row['workload']}, temperature {row['temperature']:g}", row["best"], table.with_spread(row["share"])]
            for row in report["auto"]
        ]
        sections.append(grid([head, *body]))
    return "".join(sections)


def speed_plot(rows: Sequence[Row]) -> str:
    """Return a plot with a group of bars for each workload, one bar for each arm."""
    workloads = list(dict.fromkeys(row["workload"] for row in rows))
    arms = list(dict.fromkeys(row["arm"] for row in rows if row["arm"] != "mlx-lm"))
    by_arm = {(row["workload"], row["arm"]): row for row in rows}
    values = [[_value(by_arm.get((w, arm)), "ratio", f"{w}, {arm}") for arm in arms] for w in workloads]
    drawn = svg.bars(workloads, arms, values, "times mlx-lm's plain decoding", one=True, first=1)
    return f'<div class="wide">{drawn}</div>{svg.legend(arms, first=1)}' if drawn else ""


def speed_table(rows: Sequence[Row]) -> str:
    """Return the table of all figures of the workloads."""
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
    first, *rest = table.EXPLAINED  # as wide as a terminal
    notes = [first, " ".join(rest), *(f"{row['workload']}: {table.chosen(row)}" for row in rows if row["policy"])]
    return grid([head, *body]) + "".join(f'<p class="soft">{escape(line)}</p>' for line in notes)


def acceptance(report: Row) -> str:
    """Return the plot of acceptance by draft depth, from the arm with the most drafts a round."""
    fixed = {int(r["arm"].split()[1]) for r in report["speed"] if r["arm"].startswith("depth ") and r["acceptance"]}
    if not fixed:
        return ""
    deepest = max(fixed)
    series = []
    for row in report["speed"]:
        if row["arm"] == f"depth {deepest}":
            name = f"{row['workload']}, temperature {row['temperature']:g}"
            shares = enumerate(row["acceptance"], start=1)
            points = [PlotPoint(k, PlotValue(s, s, s, f"{name}: {s:.2f} at depth {k}")) for k, s in shares]
            series.append(PlotLine(name, tuple(points)))
    drawn = svg.lines(series, "depth of the draft", f"share that stood, drafting {deepest}", top=1.0)
    return f"<h2>Acceptance by depth</h2>{drawn}{svg.legend([line.name for line in series])}"


def costs(report: Row) -> str:
    """Return the plot and the table of C(m), with the line of m single passes for comparison."""
    if not report["costs"]:
        return ""
    series = []
    for cost in report["costs"]:
        name = table.priced(cost).removeprefix("cost ")
        curve = enumerate(cost["curve"], start=1)
        points = [PlotPoint(m, PlotValue(c, c, c, f"{name}: C({m}) = {c:.2f}")) for m, c in curve]
        series.append(PlotLine(name, tuple(points)))
    most = len(report["costs"][0]["curve"])
    diagonal = tuple(PlotPoint(m, PlotValue(m, m, m)) for m in (1, most))
    single = PlotLine("m passes over one row", diagonal, dashed=True)
    drawn = svg.lines([*series, single], "rows of a pass", "time, in passes over one row")
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
    legend = svg.legend([line.name for line in (*series, single)])
    return f"<h2>Cost of a pass by its rows</h2>{drawn}{legend}{grid([head, *body])}"


def contexts(report: Row) -> str:
    """Return the plots and the table over the context length: decode rate, TTFT, prefill rate, peak memory."""
    if not report["contexts"]:
        return ""
    arms = [arm["arm"] for arm in report["contexts"][0]["arms"]]
    rates = [PlotLine(arm, _over_context(report, arm, "rate", "tok/s")) for arm in arms]
    prefill = [PlotLine(who, _prefill(report, who)) for who in report["contexts"][0]["prefill_rate"]]
    first = [PlotLine(arm, _over_context(report, arm, "ttft_s", "s")) for arm in arms]
    memory = [
        PlotLine(arm["arm"], tuple(PlotPoint(r["context"], _gigabytes(r["arms"][i])) for r in report["contexts"]))
        for i, arm in enumerate(report["contexts"][0]["arms"])
    ]
    where = "tokens of context"
    sections = ["<h2>Over the length of context, greedy</h2>"]
    for series, label in ((rates, "tok/s"), (first, "seconds to the first token"), (prefill, "prefill tok/s")):
        sections += [svg.lines(series, where, label, log_x=True), svg.legend([line.name for line in series])]
    sections += [svg.lines(memory, where, "peak memory, GB", log_x=True), svg.legend([line.name for line in memory])]
    cells = [line for row in report["contexts"] for line in _context_rows(row)]
    head = ["context, arm", "tok/s", "to mlx-lm", "tokens a round", "TTFT s", "prefill tok/s", "peak memory GB"]
    return "".join([*sections, grid([head, *cells])])


def _context_rows(row: Row) -> list[list[str]]:
    lines = []
    for arm in row["arms"]:
        prefill = row["prefill_rate"].get("mlx-lm" if arm["arm"] == "mlx-lm" else "ours")
        cells = [f"{row['context']}, {arm['arm']}", table.with_spread(arm["rate"]), table.with_spread(arm["ratio"])]
        cells += [table.number(arm["tokens_per_round"], 2), table.with_spread(arm["ttft_s"])]
        lines.append([*cells, table.number(table.median(prefill), 0), f"{arm['peak_bytes'] / 1e9:.2f}"])
    return lines


def _over_context(report: Row, arm: str, field: str, unit: str) -> tuple[PlotPoint, ...]:
    points = []
    for row in report["contexts"]:
        measured = next((one for one in row["arms"] if one["arm"] == arm), None)
        if value := _value(measured, field, f"{arm} at {row['context']}, {unit}"):
            points.append(PlotPoint(row["context"], value))
    return tuple(points)


def _prefill(report: Row, who: str) -> tuple[PlotPoint, ...]:
    values = ((row["context"], _value(row["prefill_rate"], who, who)) for row in report["contexts"])
    return tuple(PlotPoint(context, value) for context, value in values if value)


def _gigabytes(arm: Row) -> PlotValue:
    size = arm["peak_bytes"] / 1e9
    return PlotValue(size, size, size, f"{arm['arm']}: {size:.2f} GB")


def _value(row: Row | None, field: str, name: str) -> PlotValue | None:
    """Return the spread in a field of a row as a value for a plot, or None where it was not measured."""
    spread = row.get(field) if row else None
    if not spread:
        return None
    return PlotValue(spread["median"], spread["low"], spread["high"], f"{name}: {table.with_spread(spread)}")
