"""The report as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from mlxmtp.units import size

Row = dict[str, Any]
"""An object of the report's JSON."""
NONE = "-"
"""Text of a cell without a value."""
EXPLAINED = (
    "to mlx-lm: its plain decoding of the same prompt in the same repeat is 1; tok/round: tokens that a pass gave",
    "ideal: the speed-up over ours plain, if rounds took what their pass and their drafts take alone, C(depth + 1) and",
    "depth draft steps; reached: the share of it that came",
)


def as_text(report: Row) -> str:
    """Return the whole report. Sections without measurements are left out."""
    sections = [about(report), speed(report), auto(report), contexts(report), costs(report), remarks(report)]
    return "\n\n".join("\n".join(section) for section in sections if section)


def about(report: Row) -> list[str]:
    """Return the lines on what was measured, and on which machine."""
    model, machine, versions, settings = (report[name] for name in ("model", "machine", "versions", "settings"))
    head = f"with its {model['head']} head" if model["head"] else "without MTP"
    few = f", which drafts {model['draft_vocabulary']:,} tokens" if model.get("draft_vocabulary") else ""
    memory = size(machine["memory_bytes"]) if machine["memory_bytes"] else "unknown memory"
    device = machine["device"] + (f" ({machine['device_name']})" if machine["device_name"] else "")
    lines = [
        f"model    {model['name']} {head}{few}, {size(model['bytes'])}",
        f"machine  {machine['processor']}, {machine['cores']} cores, {memory}, MLX on {device}, {machine['system']}",
        "versions " + ", ".join(f"{name} {version}" for name, version in versions.items()),
        f"runs     {settings['tokens']} tokens, {settings['repeats']} repeats, arms in turn; medians, in brackets the "
        "lowest and highest",
    ]
    if any(settings.get("temperatures", ())):
        lines.append(f"sampling above temperature 0: {filters(settings)}, verified by {settings['verify']}")
    if report["synthetic"] is not None:
        lines.append(f"NOTE     synthetic: each draft stood with probability {report['synthetic']}, whatever it was")
    if not report["complete"]:
        lines.append(f"PARTIAL  {report['measured']} of {report['planned']} measurements")
    return lines


def filters(settings: Row) -> str:
    """Return the filters above temperature 0 in words."""
    off = {"top_p": 1.0, "top_k": 0, "min_p": 0.0}
    values = {name: settings.get(name, value) for name, value in off.items()}  # an older report has none
    used = [f"{name.replace('_', '-')} {value:g}" for name, value in values.items() if value != off[name]]
    return ", ".join(used) or "no filters"


def speed(report: Row) -> list[str]:
    """Return the table of workloads and arms."""
    table = [["workload", "tok/s", "to mlx-lm", "tok/round", "accepted by depth", "ideal", "reached", "TTFT s"]]
    for workload, temperature in dict.fromkeys((r["workload"], r["temperature"]) for r in report["speed"]):
        table.append([f"{workload}, temperature {temperature:g}", *[""] * 7])
        table += [_arm(r) for r in report["speed"] if (r["workload"], r["temperature"]) == (workload, temperature)]
    lines = [f"{r['workload']}, temperature {r['temperature']:g}: {chosen(r)}" for r in report["speed"] if r["policy"]]
    return [*aligned(table), *EXPLAINED, *lines] if report["speed"] else []


def chosen(row: Row) -> str:
    """Return auto's last choice of depth, and how many prompt-lookup drafts were accepted."""
    accepted, count = row["looked_up"]
    looked_up = f"; looked up in the text: {accepted} of {count} stood" if count else ""
    return f"{row['policy']}{looked_up}"


def _arm(row: Row) -> list[str]:
    return [
        f"  {row['arm']}",
        number(median(row["rate"]), 1),
        with_spread(row["ratio"]),
        number(row["tokens_per_round"], 2),
        " ".join(f"{share:.2f}" for share in row["acceptance"]) or NONE,
        number(median(row["ideal"]), 2),
        number(median(row["reached"]), 2),
        number(median(row["ttft_s"]), 3),
    ]


def auto(report: Row) -> list[str]:
    """Return the table of auto against the best other arm of mlxmtp."""
    if not report["auto"]:
        return []
    table = [["auto beside the best of plain and the fixed depths", "best", "auto to best"]]
    table += [
        [f"  {row['workload']}, temperature {row['temperature']:g}", row["best"], with_spread(row["share"])]
        for row in report["auto"]
    ]
    return aligned(table)


def contexts(report: Row) -> list[str]:
    """Return the table over context lengths."""
    table = [["context", "arm", "tok/s", "to mlx-lm", "TTFT s", "prefill tok/s", "peak memory"]]
    for row in report["contexts"]:
        for arm in row["arms"]:
            reader = "mlx-lm" if arm["arm"] == "mlx-lm" else "ours"
            rate, prefill = median(arm["rate"]), median(row["prefill_rate"].get(reader))
            cells = [str(row["context"]), arm["arm"], number(rate, 1), with_spread(arm["ratio"])]
            table.append([*cells, number(median(arm["ttft_s"]), 2), number(prefill, 0), size(arm["peak_bytes"])])
    return aligned(table) if len(table) > 1 else []


def costs(report: Row) -> list[str]:
    """Return the lines on the cost of passes and draft steps."""
    lines = []
    for cost in report["costs"]:
        curve = " ".join(f"{value:.2f}" for value in cost["curve"])
        lines.append(
            f"{priced(cost)}: one row {cost['rows_s'][0] * 1e3:.2f} ms; C(m) {curve}; "
            f"draft step {cost['draft']:.2f} ({cost['draft_s'] * 1e3:.2f} ms); other {cost['other_s'] * 1e3:.2f} ms"
        )
    legend = (
        "C(m): the time of a pass over m rows, in passes over one; a draft step likewise; other: the rest of a round"
    )
    return [*lines, legend] if lines else []


def priced(cost: Row) -> str:
    """Return where a cost was measured, as the head of its line."""
    return "cost at " + (f"{cost['context']:.0f} tokens" + (" (workloads)" if cost["where"] == "workloads" else ""))


def remarks(report: Row) -> list[str]:
    """Return the lines on equal tokens, on drift, and the notes."""
    lines = [identity(report), *(f"  {difference(row)}" for row in report["differences"])]
    if (line := drifted(report)) is not None:
        lines.append(line)
    return [*lines, *(f"note: {note}" for note in report["notes"])]


def identity(report: Row) -> str:
    """Return the line that says whether greedy tokens equal those of mlx-lm."""
    greedy = sum(row["temperature"] == 0 for row in report["differences"])
    if report["synthetic"] is not None:
        return "tokens: not compared, as drafts stood by chance"
    if not report["differences"]:
        same = f"identical to mlx-lm's plain decoding in all {report['compared']} greedy runs"
        return f"tokens: {same}" if report["compared"] else "tokens: nothing greedy was compared with mlx-lm's"
    sampled = len(report["differences"]) - greedy
    seeded = f"; {sampled} seeded runs differ from plain ones" if sampled else ""
    return f"tokens: {greedy} of {report['compared']} greedy runs differ from mlx-lm's plain decoding{seeded}"


def place(row: Row) -> str:
    """Return the name of a unit of the plan."""
    return f"{row['workload']} {row['number']}, temperature {row['temperature']:g}, repeat {row['repeat'] + 1}"


def difference(row: Row) -> str:
    """Return the line on the first token of a run that differs from the expected one."""
    gap = ""
    if row["gap"] is not None:
        gap = f"; its logit is {abs(row['gap']):.3g} {'lower' if row['gap'] >= 0 else 'higher'}"
    return f"{place(row)}: {row['arm']} differs at token {row['at'] + 1}{gap}"


def drifted(report: Row) -> str | None:
    """Return the line on drift, or None where nothing was measured."""
    drift = report["drift"]
    if drift is None:
        return "drift: not known, which takes two repeats" if report["measured"] else None
    change = f"{drift['change']:+.1%} from the first third to the last"
    if drift["noticed"]:
        why = "it got warm, or had other work" if drift["change"] < 0 else "it had other work at first"
        return f"drift: mlx-lm's plain rate changed by {change}: {why}; trust the ratios, not the rates"
    return f"drift: none to speak of (mlx-lm's plain rate {change})"


def aligned(table: Sequence[Sequence[str]]) -> list[str]:
    """Return the rows as lines. Each column is as wide as its widest cell; the first is aligned to the left."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return ["  ".join(_cells(row, widths)).rstrip() for row in table]


def _cells(row: Sequence[str], widths: Sequence[int]) -> Iterable[str]:
    for i, (cell, width) in enumerate(zip(row, widths, strict=True)):
        yield cell.ljust(width) if i == 0 else cell.rjust(width)


def median(spread: Row | None) -> float | None:
    return None if spread is None else float(spread["median"])


def number(value: float | None, digits: int) -> str:
    return NONE if value is None else f"{value:,.{digits}f}"


def with_spread(spread: Row | None) -> str:
    return NONE if spread is None else f"{spread['median']:.2f} ({spread['low']:.2f} to {spread['high']:.2f})"
