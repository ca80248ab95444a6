"""The report of a machine, to be shared: what doctor and bench find there, without names of the user."""

from __future__ import annotations

import getpass
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from mlxmtp.bench import page
from mlxmtp.checkpoints import Checkpoint
from mlxmtp.files import read_json, write_whole
from mlxmtp.version import __version__

Row = dict[str, Any]
"""A JSON object."""
PROGRAM = (sys.executable, "-P", "-m", "mlxmtp")
"""Arguments of the process that measures a part."""
INTERRUPTED = 130
"""Exit code of an interrupted command."""
LEFT_OUT = "(left out)"
"""Text in place of a name of the user."""
PRIVATE = ("path", "key", "command", "head_repo", "uuid", "pci_bus_id")
"""Fields that are not shared."""
SENTENCES = ("error", "failed", "because", "plain_because", "notes", "broken")
"""Fields with sentences, in which the names of user and host are left out. Elsewhere such a word is another's."""
MAX_SIDE = 4096
"""Inputs of a few-row product, at most: a larger one takes no other kernel."""
FEW = ("--limit", "1", "--repeats", "1", "--tokens", "32")
"""Options of a benchmark that is short."""


@dataclass(frozen=True)
class Part:
    """A part of the report.

    Args:
        command: words after `mlxmtp` that print one JSON object.
    """

    name: str
    title: str
    command: tuple[str, ...]


def parts(folder: Path, loading: Sequence[str], *, quick: bool) -> list[Part]:
    """Return the parts that commands measure.

    Args:
        folder: benchmarks keep their measurements there, so that a later run goes on.
        loading: options of the model, as `--model`.
        quick: few prompts, short contexts.
    """

    def bench(name: str, title: str, *words: str) -> Part:
        few = FEW if quick else ()
        return Part(name, title, ("bench", "--json", "--out", str(folder / name), *few, *words, *loading))

    depths = ("--depths", *("12" if quick else "1234"))
    contexts = ("--contexts", *(("1k",) if quick else ("4k", "16k")))
    return [
        Part("doctor", "Guarantees", ("doctor", "--json", *loading)),
        bench("bench", "Speed", *depths, *contexts),
        bench("strict", "Speed with identity strict", "--identity", "strict", "--temps", "0", *depths, "--contexts"),
        bench("canonical", "With identity canonical", "--identity", "canonical", "--temps", "0", *depths, "--contexts"),
    ]


def measure(folder: Path, part: Part, program: Sequence[str] = PROGRAM) -> Row:
    """Return the result of a part: measured now, or by an earlier run of the same version.

    A part that fails gives {"failed": why}, or its own "error"; the next run tries it again.
    """
    file = folder / "parts" / f"{part.name}.json"
    asked = {"command": list(part.command), "version": __version__}
    with suppress(OSError, ValueError):
        kept = read_json(file)
        if isinstance(kept, dict) and kept.get("asked") == asked:
            result: Row = kept["result"]
            return result
    ran = subprocess.run([*program, *part.command], stdout=subprocess.PIPE, check=False)  # it shows its own progress
    if ran.returncode == INTERRUPTED:
        raise KeyboardInterrupt
    printed: Any = None
    with suppress(ValueError):
        printed = json.loads(ran.stdout)
    if not isinstance(printed, dict):
        return {"failed": f"mlxmtp {part.command[0]} ended with exit code {ran.returncode}"}
    if not printed.get("error"):
        write_whole(file, json.dumps({"asked": asked, "result": printed}))
    return printed


def report(model: str, machine: Row, found: Mapping[str, Row], products: list[Row], names: PrivateNames) -> Row:
    """Return the report to share.

    Args:
        model: what the model is called in it.
        found: result by name of its part.
        products: of few_row_products.
        names: what is left out.
    """
    results = {name: _named(result, model) for name, result in found.items()}
    whole = {"schema": 1, "mlxmtp": __version__, "model": model, "machine": machine, "products": products}
    cleaned: Row = _without(whole | {"parts": results}, names)
    return cleaned


@dataclass(frozen=True)
class PrivateNames:
    """Patterns of what must not be in the report: paths, and in sentences the names of user and host too."""

    paths: re.Pattern[str]
    all: re.Pattern[str]

    @classmethod
    def of(cls, *paths: Path | str) -> PrivateNames:
        """Return those of this process, with these paths as they were typed and where they are."""
        typed = [str(path) for path in (*paths, Path.home(), Path.cwd()) if str(path)]
        places = {*typed, *(str(Path(path).expanduser().absolute()) for path in typed), *map(os.path.realpath, typed)}
        longest = [re.escape(place) for place in sorted(places - {"/", "."}, key=len, reverse=True)]
        words = {socket.gethostname(), socket.gethostname().split(".")[0]} - {""}
        with suppress(KeyError, OSError):  # a process without a user
            words.add(getpass.getuser())
        alone = [rf"\b{re.escape(word)}\b" for word in words]
        return cls(re.compile("|".join(longest)), re.compile("|".join((*longest, *alone))))


def description(checkpoint: Checkpoint) -> str:
    """Return the name of a model that says nothing of its user: the Hub's repo, or its kind and size."""
    if checkpoint.repo:
        return checkpoint.repo
    text, quantization = checkpoint.text_config, checkpoint.config.get("quantization") or {}
    bits = f", {quantization['bits']} bits" if quantization.get("bits") else ""
    kind = checkpoint.config.get("model_type", "model")
    return f"{kind}, {text.get('num_hidden_layers', '?')} layers of {text.get('hidden_size', '?')}{bits}"


def side_of(checkpoint: Checkpoint) -> int:
    """Return the side of the matrix for few-row products: the model's hidden size, in steps of 512 up to `MAX_SIDE`."""
    size = checkpoint.text_config.get("hidden_size")
    return min(max(size // 512, 1) * 512, MAX_SIDE) if isinstance(size, int) else MAX_SIDE


def as_html(report: Row, titles: Mapping[str, str]) -> str:
    """Return the report as a page."""
    machine = report["machine"]
    facts = [
        f"{name}: {machine[name]}" for name in ("system", "processor", "device", "device_name") if machine.get(name)
    ]
    sections = [f"<h1>mlxmtp report: {escape(report['model'])}</h1>", f'<p class="soft">{escape(", ".join(facts))}</p>']
    for name, result in report["parts"].items():
        sections += [f"<h2>{escape(titles[name])}</h2>", *_part(name, result)]
    sections += ["<h2>Products of few rows</h2>", _products(report["products"])]
    return page.document(f"mlxmtp report: {report['model']}", sections)


def _part(name: str, result: Row) -> list[str]:
    if reason := result.get("failed") or result.get("error"):
        return [f"<p>It failed: {escape(str(reason))}</p>"]
    if name != "doctor":
        return page.body(result)
    rows = [["identity", "promise", "rows", "context", "why"]]
    for identity, one in result.get("identities", {}).items():
        verdict = one["verdict"]
        rows.append([identity, *(str(verdict[field]) for field in ("promise", "rows", "context", "because"))])
    return [page.grid(rows)]


def _products(products: Sequence[Row]) -> str:
    one = min((row["seconds"] for row in products if row["rows"] == 1), default=1.0)
    rows = [["variant, rows", "microseconds", "of one row's time", "bits of one row"]]
    for row in products:
        cells = [f"{row['variant']}, {row['rows']}", f"{row['seconds'] * 1e6:.1f}", f"{row['seconds'] / one:.2f}"]
        rows.append([*cells, "yes" if row["equal"] else "no"])
    return page.grid(rows)


def _named(result: Row, model: str) -> Row:
    """Return a result whose model has this name."""
    return result | {"model": result["model"] | {"name": model}} if isinstance(result.get("model"), dict) else result


def _without(value: Any, names: PrivateNames, field: str = "") -> Any:
    """Return a JSON value, of a field, without the private fields and names."""
    if isinstance(value, str):
        return (names.all if field in SENTENCES else names.paths).sub(LEFT_OUT, value)
    if isinstance(value, list):
        return [_without(item, names, field) for item in value]
    if isinstance(value, dict):
        return {name: _without(item, names, name) for name, item in value.items() if name not in PRIVATE}
    return value


def measured(
    folder: Path, wanted: Sequence[Part], on_part: Callable[[int, Part], None], program: Sequence[str] = PROGRAM
) -> Iterator[tuple[str, Row]]:
    """Yield name and result of each part, in order.

    Args:
        on_part: called with the part's number, from 1, before it is measured.
    """
    for number, part in enumerate(wanted, 1):
        on_part(number, part)
        yield part.name, measure(folder, part, program)
