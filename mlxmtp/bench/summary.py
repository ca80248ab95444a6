"""The report of a benchmark as one JSON object, computed from its measurements. Text and page show the same object."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from mlxmtp.bench.cost_curve import CostCurve
from mlxmtp.bench.figures import Spread, drift, ideal_speedup, median_cost, pooled, spread
from mlxmtp.bench.plan import AUTO, MLX_LM, PLAIN
from mlxmtp.bench.table import place

Row = dict[str, Any]
"""A record, or an object of the report."""


def summarise(head: Row, records: Sequence[Row], *, planned: int | None = None, notes: Sequence[str] = ()) -> Row:
    """Return the report of the records.

    Args:
        head: description of the benchmark (plan.py).
        records: in the order in which they were written.
        planned: number of units of the plan. None: as many as there are records.
        notes: lines that the report shows as they are.
    """
    runs = [record for record in records if "failed" not in record]
    settings, planned = head["settings"], len(records) if planned is None else planned
    return {
        **head,
        "measured": len(runs),
        "planned": planned,
        "complete": len(runs) >= planned,
        "synthetic": settings.get("acceptance"),
        "speed": _speed([record for record in runs if record["kind"] == "speed"]),
        "auto": _auto([record for record in runs if record["kind"] == "speed"]),
        "contexts": _contexts([record for record in runs if record["kind"] == "context"]),
        "costs": _costs(runs),
        "drift": drift([(r["time"], _text(r), r["runs"][MLX_LM]["rate"]) for r in runs if r["runs"][MLX_LM]["rate"]]),
        "differences": [difference for record in runs for difference in _differences(record)],
        "compared": sum(len(record["runs"]) - 1 for record in runs if record["temperature"] == 0),
        "notes": [*notes, *_failures(records)],
    }


def _costs(records: Sequence[Row]) -> list[Row]:
    """Return the median cost over all prompts of the workloads, then at each context, the shortest first."""
    speed = [record for record in records if record["kind"] == "speed"]
    contexts = _grouped((record for record in records if record["kind"] == "context"), "number")
    rows = []
    for name, alike in (("workloads", speed), *((f"context {n}", contexts[n,]) for (n,) in sorted(contexts))):
        if costs := [cost for record in alike if (cost := _cost(record))]:
            cost = median_cost(costs)
            fields = {"where": name, "context": cost.context, "rows_s": list(cost.pass_s), "curve": list(cost.curve)}
            rows.append(fields | {"draft_s": cost.draft_s, "draft": cost.draft_cost, "other_s": cost.overhead_s})
    return rows


def _cost(record: Row) -> CostCurve | None:
    cost = record.get("cost")
    if not cost:
        return None
    return CostCurve.from_dict(cost)


def _speed(records: Sequence[Row]) -> list[Row]:
    """Return a row for each workload, temperature and arm."""
    return [
        {"workload": workload, "temperature": temperature} | _arm(alike, arm)
        for (workload, temperature), alike in _grouped(records, "workload", "temperature").items()
        for arm in alike[0]["runs"]
    ]


def _arm(records: Sequence[Row], arm: str) -> Row:
    """Return the figures of an arm over the records."""
    runs = [record["runs"][arm] for record in records]
    drafted, accepted = pooled(run["drafted"] for run in runs), pooled(run["accepted"] for run in runs)
    rounds = sum(run["rounds"] for run in runs)
    return {
        "arm": arm,
        "rate": _spread_json(spread(run["rate"] for run in runs if run["rate"])),
        "ratio": _spread_json(ratios(records, arm, MLX_LM)),
        "ratio_to_plain": _spread_json(ratios(records, arm, PLAIN)),
        "tokens_per_round": sum(run["tokens"] for run in runs) / rounds if rounds else 0.0,
        "acceptance": [count / total for count, total in zip(accepted, drafted, strict=True) if total],
        "drafted": drafted,
        "ttft_s": _spread_json(spread(_ttft(record, arm) for record in records)),
        "looked_up": [sum(run.get(name, 0) for run in runs) for name in ("looked_up_accepted", "looked_up")],
        "policy": next((run["policy"] for run in reversed(runs) if run.get("policy")), ""),
    } | _reached(records, arm)


def ratios(records: Iterable[Row], arm: str, base: str) -> Spread | None:
    """Return the spread of an arm's rate over another's, in pairs of the same repeat and prompt."""
    pairs = ((record["runs"][arm]["rate"], record["runs"][base]["rate"]) for record in records)
    return spread(mine / other for mine, other in pairs if mine and other)


def _reached(records: Iterable[Row], arm: str) -> Row:
    """Return the ideal speed-up over mlxmtp's plain decoding, and the share that was reached, for a fixed depth.

    The costs of passes and draft steps are those of the same prompt in the same repeat.
    """
    shares: dict[str, list[float]] = {"ideal": [], "reached": []}
    for record in records if arm.startswith("depth ") else ():
        run, plain, cost = record["runs"][arm], record["runs"][PLAIN]["rate"], _cost(record)
        if not cost or not run["rate"] or not plain:
            continue
        depth, per_round = int(arm.removeprefix("depth ")), run["tokens"] / run["rounds"]
        ideal = ideal_speedup(per_round, plain, cost, depth)
        if ideal is not None:
            shares["ideal"].append(ideal)
            shares["reached"].append(run["rate"] / plain / ideal)
    return {name: _spread_json(spread(values)) for name, values in shares.items()}


def _auto(records: Sequence[Row]) -> list[Row]:
    """Return auto's rate over that of the best other arm of mlxmtp, for each workload and temperature."""
    rows = []
    for (workload, temperature), alike in _grouped(records, "workload", "temperature").items():
        if AUTO not in alike[0]["runs"]:
            continue
        medians = {arm: ratio.median for arm in alike[0]["runs"] if (ratio := ratios(alike, arm, MLX_LM))}
        others = {arm: median for arm, median in medians.items() if arm not in (MLX_LM, AUTO)}
        if others and AUTO in medians:
            best = max(others, key=lambda arm: others[arm])
            share = _spread_json(ratios(alike, AUTO, best))
            rows.append({"workload": workload, "temperature": temperature, "best": best, "share": share})
    return rows


def _contexts(records: Sequence[Row]) -> list[Row]:
    """Return a row for each context: its arms, and the prefill rates of both programs."""
    rows = []
    for (context,), alike in _grouped(records, "number").items():
        arms = []
        for arm in alike[0]["runs"]:
            peaks = (max(r["runs"][arm]["peak_bytes"], _prefill(r, arm)["peak_bytes"]) for r in alike)
            arms.append(_arm(alike, arm) | {"peak_bytes": max(peaks)})
        prefill = {
            who: _spread_json(spread((context - 1) / r["readings"][who]["seconds"] for r in alike))
            for who in alike[0]["readings"]
        }
        rows.append({"context": context, "prefill_rate": prefill, "arms": arms})
    return sorted(rows, key=lambda row: int(row["context"]))


def _prefill(record: Row, arm: str) -> Row:
    prefill: Row = record["readings"]["mlx-lm" if arm == MLX_LM else "ours"]
    return prefill


def _ttft(record: Row, arm: str) -> float:
    """Return the seconds to the first token, prefill included."""
    seconds: float = _prefill(record, arm)["seconds"] + record["runs"][arm]["first_s"]
    return seconds


def _differences(record: Row) -> list[Row]:
    where = {name: record[name] for name in ("kind", "workload", "number", "temperature", "repeat")}
    return [where | {"arm": arm} | difference for arm, difference in record["differs"].items()]


def _failures(records: Iterable[Row]) -> list[str]:
    failed = (record for record in records if "failed" in record)
    return [f"{place(one)} was not measured: {one['failed']}; the same command tries it again" for one in failed]


def _text(record: Row) -> str:
    """Return the name of the text that was decoded."""
    return f"{record['kind']} {record['workload']} {record['number']} {record['temperature']}"


def _spread_json(measured: Spread | None) -> Row | None:
    return measured.to_dict() if measured else None


def _grouped(records: Iterable[Row], *names: str) -> dict[tuple[Any, ...], list[Row]]:
    """Return the records grouped by these fields, in their order."""
    groups: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for record in records:
        groups[tuple(record[name] for name in names)].append(record)
    return groups
