"""The parts of a machine's report, each measured by a command in a process of its own, and kept."""

from __future__ import annotations

import codecs
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from mlxmtp.files import read_json, write_whole

Row = dict[str, Any]
"""A JSON object."""
PROGRAM = (sys.executable, "-P", "-m", "mlxmtp")
"""Arguments of the process that measures a part. A fault of a GPU ends it, and not the report."""
INTERRUPTED = 130
"""Exit code of an interrupted command."""
GRACE_S = 4.0
"""Seconds that a part has to keep what it measured, when it is interrupted."""
LAST_BYTES = 4096
"""Bytes at the end of standard error in which the last line is sought."""
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
"""What moves the cursor of a terminal, or colours its text."""
FAST_SYNCH = {"MLX_METAL_FAST_SYNCH": "1"}
"""MLX's switch by which CPU and GPU wait for each other in memory."""


@dataclass(frozen=True)
class Part:
    """A part of the report.

    Args:
        command: words after `mlxmtp` that print one JSON object.
        share: time that it takes, in times of one benchmark of greedy workloads. 0: little.
        switches: of MLX's environment.
    """

    name: str
    title: str
    command: tuple[str, ...]
    share: int = 0
    switches: Mapping[str, str] = field(default_factory=dict)


def parts(folder: Path, loading: Sequence[str], *, quick: bool, limit: int | None = None, metal: bool) -> list[Part]:
    """Return the parts, each measured by a command.

    Args:
        folder: benchmarks keep their measurements there, so that a later run goes on.
        loading: options of the model, as `--model`.
        quick: few prompts, short contexts.
        limit: prompts of a workload. None: 1 where it is quick, else as `mlxmtp bench`.
        metal: measure a switch of Metal too.
    """
    few = ("--repeats", "1", "--tokens", "32") if quick else ()
    prompts = limit or (1 if quick else None)
    options = (*few, *(("--limit", str(prompts)) if prompts else ()), *loading)

    def bench(name: str, title: str, *words: str, share: int = 1, switches: Mapping[str, str] | None = None) -> Part:
        command = ("bench", "--json", "--out", str(folder / name), *words, *options)
        return Part(name, title, command, share, switches or {})

    depths = ("--depths", *("12" if quick else "1234"))
    contexts = ("--contexts", *(("1k",) if quick else ("4k", "16k")))
    greedy = ("--temps", "0", *depths, "--contexts")
    switched = bench("fast_synch", "Speed with MLX_METAL_FAST_SYNCH=1", *greedy, switches=FAST_SYNCH)
    return [
        Part("doctor", "Guarantees", ("doctor", "--json", *loading)),
        Part("products", "Products of few rows", ("report", "--products", *loading)),
        bench("bench", "Speed", *depths, *contexts, share=3),
        bench("strict", "Speed with identity strict", "--identity", "strict", *greedy),
        bench("canonical", "Speed with identity canonical", "--identity", "canonical", *greedy),
        *([switched] if metal else []),
    ]


def measured(
    folder: Path,
    wanted: Sequence[Part],
    facts: Row,
    on_part: Callable[[int, Part, float | None], None],
    program: Sequence[str] = PROGRAM,
) -> Iterator[tuple[str, Row]]:
    """Yield name and result of each part, in order.

    Args:
        facts: as `measure`.
        on_part: called with the part's number, from 1, before it is measured, and with the seconds that it and those
            after it take at the pace of those before; None: not known.
    """
    spent, shares = 0.0, 0
    for number, part in enumerate(wanted, 1):
        left = sum(later.share for later in wanted[number - 1 :])
        on_part(number, part, spent / shares * left if shares else None)
        result = measure(folder, part, facts, program)
        if part.share and "seconds" in result:
            spent, shares = spent + result["seconds"], shares + part.share
        yield part.name, result


def measure(folder: Path, part: Part, facts: Row, program: Sequence[str] = PROGRAM) -> Row:
    """Return the result of a part: measured now, or by an earlier run with the same facts.

    It has its seconds, unless it went on with a benchmark that was stopped.

    A part that fails gives {"failed": why}, or its own "error"; the next run tries it again.

    Args:
        facts: of the machine and the model, as JSON values.
    """
    file = folder / "parts" / f"{part.name}.json"
    asked = {"command": list(part.command), "switches": dict(part.switches), "facts": facts}
    with suppress(OSError, ValueError):
        kept = read_json(file)
        if isinstance(kept, dict) and kept.get("asked") == asked:
            result: Row = kept["result"]
            return result
    whole, start = not (folder / part.name).exists(), time.monotonic()
    code, output, last = run_shown([*program, *part.command], os.environ | part.switches)
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    printed: Any = None
    with suppress(ValueError):
        printed = json.loads(output)
    if not isinstance(printed, dict):
        ended = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return {"failed": f"mlxmtp {part.command[0]} {ended}" + (f"; its last line: {last}" if last else "")}
    if whole:
        printed["seconds"] = round(time.monotonic() - start, 1)
    if not printed.get("error"):
        write_whole(file, json.dumps({"asked": asked, "result": printed}))
    return printed


def run_shown(command: Sequence[str], environment: Mapping[str, str]) -> tuple[int, bytes, str]:
    """Run a command; return its exit code, its standard output, and the last line of its standard error.

    Standard error is shown as it comes. It is a terminal for the command where it is one here, as progress is shown
    in place then.
    """
    reader, writer = pty.openpty() if sys.stderr.isatty() else os.pipe()
    decoder, last = codecs.getincrementaldecoder("utf-8")("replace"), b""
    with open(reader, "rb", buffering=0) as errors, TemporaryFile() as output:
        process = subprocess.Popen(command, stdout=output, stderr=writer, env=environment)
        os.close(writer)
        try:
            while piece := _read(errors.fileno()):
                sys.stderr.write(decoder.decode(piece))
                sys.stderr.flush()
                last = (last + piece)[-LAST_BYTES:]
            code = process.wait()
        except BaseException:
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_S)
            process.kill()
            process.wait()
            raise
        output.seek(0)
        lines = re.split(r"[\r\n]+", ESCAPES.sub("", last.decode(errors="replace")))
        return code, output.read(), next((line.strip() for line in reversed(lines) if line.strip()), "")


def _read(descriptor: int) -> bytes:
    """Return what can be read; empty: the end. Linux gives an error at the end of a terminal."""
    try:
        return os.read(descriptor, LAST_BYTES)
    except OSError:
        return b""
