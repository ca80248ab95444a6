"""`mlxmtp doctor`: check the machine and a model, and say which guarantee about the text holds."""

from __future__ import annotations

import argparse
import gc
import json
import shlex
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import mlxmtp
from mlxmtp import machine
from mlxmtp.cli import options
from mlxmtp.cli.progress import Progress
from mlxmtp.errors import CheckpointError, MlxmtpError, OptionError, in_one_line
from mlxmtp.exactness import switch
from mlxmtp.exactness.guarantee import PROMISES
from mlxmtp.terminal import say
from mlxmtp.units import size

if TYPE_CHECKING:
    from mlxmtp import Engine
    from mlxmtp.engine.examine import Examination

FOUND_FAULT = 1
"""Exit code if something is broken."""
PACKAGES = ("mlx", "mlx-lm", "transformers", "textual")
"""Packages whose versions the report states."""
SWITCH_KEPT = "chat and serve use it with --identity strict; set it for generate and bench"
ADVICE = {
    "identical": "MTP writes what plain decoding writes, token for token; there is nothing to set",
    "identical-one-row": "--identity strict gives plain decoding's tokens, by one-row arithmetic; it costs some speed",
    "identical-canonical": "--identity canonical makes MTP and --no-mtp write the same tokens; both differ from what "
    "--no-mtp writes without it",
    "distribution": "with MTP as it is, a token may differ where the two likeliest are nearly as likely as each other; "
    "neither text is the better one",
}


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "doctor",
        help="check this machine and a model on it, and say whether MTP's text is plain decoding's",
        description="Check the machine and a model: MLX and its device, memory, versions; then compare one row of\n"
        "logits with several, bit for bit, and a greedy text with and without MTP, and say which promise holds.\n"
        "Exit code 0: all is well, whichever promise holds; 1: something is broken; 2: there is no such model.",
        epilog="Example:\n  mlxmtp doctor --model ./Qwen3.5-4B",
    )
    command.add_argument("--model", metavar="PATH|REPO", help="(default: the bundled demo)")
    command.add_argument("--head", metavar="PATH|REPO", help="take the MTP head from here")
    options.add_device(command.add_argument)
    command.add_argument("--json", action="store_true", help="print one JSON object")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Check everything, print the report, and return the exit code."""
    report: dict[str, Any] = {}
    try:
        return examine(arguments, report)
    except (CheckpointError, OptionError) as error:  # no such model: exit code 2
        report["error"] = str(error)
        raise
    except MlxmtpError as error:
        return broken(arguments, report, str(error))
    except Exception as error:  # any fault is a finding
        return broken(arguments, report, f"{type(error).__name__}: {error}")
    finally:
        if arguments.json:
            say(json.dumps(report, indent=2, default=str))


def examine(arguments: argparse.Namespace, report: dict[str, Any]) -> int:
    """Fill the report, and return the exit code. Without `--json`, print each finding at once."""
    load = mlxmtp.load  # imports MLX, or raises with what to install
    report["machine"] = machine_facts()
    say_rows(arguments, machine_rows(report["machine"]))
    import mlx.core as mx

    from mlxmtp.bench import precision
    from mlxmtp.engine.examine import examine as examine_model
    from mlxmtp.exactness.probe import FULL

    engine = load(arguments.model, head=arguments.head)
    report["model"] = {"name": engine.name, "head": engine.head, "plain_because": engine.plain_because}
    say_rows(arguments, {"model": engine.name, "head": engine.head or f"none: {engine.plain_because}"})
    states = engine.target.embed(mx.array([[0]]))
    if states.dtype == mx.bfloat16:
        quantization = engine.target.config.get("quantization")
        times = report["float16_times"] = precision.float16_times(states.shape[-1], quantization)
        say_rows(arguments, {"float16": float16_finding(times, arguments.model or str(engine.path))})
    results: list[Examination] = []
    try:
        with DoctorProgress() as progress:
            results.extend(examine_model(engine.facts, engine.probe_text, FULL, progress.show_step))
    finally:
        report["identities"] = {one.identity: as_json(one) for one in results}
        say_rows(arguments, {one.identity: finding(one) for one in results})
    fast, best = results[0], next((one for one in results if one.guarantee.identical), results[0])
    report["promise"] = fast.guarantee.promise
    report["best"] = {"identity": best.identity, "promise": best.guarantee.promise}
    say_rows(arguments, {"promise": PROMISES[fast.guarantee.promise], "": advice(engine, best)})
    if engine.head:
        del engine, states  # two models may not fit
        gc.collect()
        mx.clear_cache()
        examine_switch(arguments, report)
    faults = [one.broken for one in results if one.broken]
    return broken(arguments, report, faults[0]) if faults else 0


def advice(engine: Engine, best: Examination) -> str:
    """Return what the user can do about the best result."""
    if engine.head is None:
        return "there is no head, so decoding is plain; mlxmtp attach brings one"
    return ADVICE[best.guarantee.promise]


class DoctorProgress(Progress):
    """Shows what is examined, and how many of its steps are done."""

    def __init__(self) -> None:
        super().__init__(sys.stderr, "Examining", lambda done, total: f"{self._step}, {done} of {total}")
        self._step = ""

    def show_step(self, step: str, done: int, total: int) -> None:
        """Show the present step."""
        self._step = step
        self.update(done, total)


def machine_facts() -> dict[str, Any]:
    """Return the facts about the machine as JSON values."""
    return (
        machine.hardware()
        | {"usable_bytes": machine.usable_memory()}
        | machine.backend()
        | {"system_fault": machine.system_fault()}
        | {"versions": machine.versions(PACKAGES)}
    )


def machine_rows(facts: dict[str, Any]) -> dict[str, str]:
    """Return the lines on the machine, by their names."""
    wired = facts["wired_limit_bytes"]
    backends = " and ".join(name for name in ("metal", "cuda") if facts[name]) or "neither Metal nor CUDA"
    fault = facts["system_fault"]
    set_to = ", ".join(f"{name}={value}" for name, value in facts["switches"].items())
    return {
        **({"system": fault} if fault else {}),
        **({"switches": set_to} if set_to else {}),
        "machine": f"{facts['system']}, {facts['processor']}, {facts['cores']} processors",
        "memory": f"{size(facts['memory_bytes'])}, of which {size(facts['usable_bytes'])} for weights and caches"
        + (f"; the GPU may wire {size(wired)}" if wired else ""),
        "MLX": f"{facts['device']} {facts['device_name']}; {backends} available",
        "with": ", ".join(f"{name} {number}" for name, number in facts["versions"].items()),
    }


def float16_finding(times: dict[int, float], name: str) -> str:
    """Return the time of float16 in times of bfloat16, and the command that converts the model where that pays."""
    from mlxmtp.bench import precision

    shares = " and ".join(f"{time:.2f} (of {rows} row{'s' * (rows > 1)})" for rows, time in times.items())
    finding = f"takes {shares} of what bfloat16 takes"
    if not precision.pays(times):
        return f"{finding}; bfloat16 is right here"
    return f"{finding}; faster here, if the model's values fit: mlxmtp convert {shlex.quote(name)} OUT --dtype float16"


def as_json(one: Examination) -> dict[str, Any]:
    """Return the result for one identity as JSON values."""
    run = None if one.run is None else asdict(one.run)
    findings = [finding.as_json() for finding in one.findings]
    return {
        "verdict": one.guarantee.as_json(),
        "findings": findings,
        "greedy_run": run,
        "broken": one.broken,
        "pass_seconds": one.pass_seconds,
    }


def examine_switch(arguments: argparse.Namespace, report: dict[str, Any]) -> None:
    """Measure strict identity with MLX's switch of the GPU's name too, on an M3 or M4, and keep what is better."""
    name, strict = machine.older_gpu_name(), report["identities"].get("strict")
    if not name or strict is None:
        return
    given = {"--model": arguments.model, "--head": arguments.head, "--device": arguments.device}
    options = [word for option, value in given.items() if value for word in (option, value)]
    try:
        fast = switch.measured_with(name, options)["identities"]["fast"]
        better, milliseconds = switch.is_better(fast, strict), 1000 * fast["pass_seconds"]
        finding = f"with {machine.GPU_SWITCH}={name}: {PROMISES[fast['verdict']['promise']]}; "
        finding += f"a pass takes {milliseconds:.3g} ms, by strict {1000 * strict['pass_seconds']:.3g} ms; "
        finding += SWITCH_KEPT if better else "it is not used"
    except Exception as error:  # nothing was shown, so nothing is kept
        better, finding = False, f"with {machine.GPU_SWITCH}={name} nothing was measured ({in_one_line(error)})"
    switch.keep_switch(arguments.model, name if better else None)
    report["switch"] = {"name": name, "used": better, "finding": finding}
    say_rows(arguments, {"switch": finding})


def finding(one: Examination) -> str:
    """Return the result for one identity as a line."""
    guarantee = one.guarantee
    facts = [PROMISES[guarantee.promise], guarantee.because or compared(one)]
    if one.run and one.run.same:
        facts.append(f"{one.run.tokens} greedy tokens are the same with and without MTP")
    elif one.run:
        kind = "not explained by rounding" if one.broken else "a near-tie"
        facts.append(f"greedy texts part after {one.run.tokens} tokens, at a gap of {one.run.gap:.2g} nats: {kind}")
    return "; ".join(facts)


def compared(one: Examination) -> str:
    """Return up to how many rows a guarantee holds, and what was found beyond."""
    rows, context = min(finding.agreed for finding in one.findings), one.guarantee.context
    first = next((finding for finding in one.findings if not finding.equal), None)
    beyond = f", for --depth up to {rows - 1}; {first.description}" if first else ""
    return f"the same bits in passes of up to {rows} rows after up to {context:,} tokens{beyond}"


def say_rows(arguments: argparse.Namespace, rows: dict[str, str]) -> None:
    """Print lines with their names, except with `--json`."""
    for name, value in rows.items() if not arguments.json else ():
        say(f"{name:11}{value}")


def broken(arguments: argparse.Namespace, report: dict[str, Any], why: str) -> int:
    """Report a fault, and return the exit code."""
    report["error"] = why
    if not arguments.json:
        say(f"{'broken':11}{why}")
    return FOUND_FAULT
