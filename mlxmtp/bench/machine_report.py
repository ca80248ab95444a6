"""The report of a machine, to be shared: what its parts found there, without names of the user."""

from __future__ import annotations

import getpass
import re
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from mlxmtp.bench import page
from mlxmtp.checkpoints import Checkpoint
from mlxmtp.units import size

Row = dict[str, Any]
"""A JSON object."""
LEFT_OUT = "(left out)"
"""Text in place of a name of the user."""
PRIVATE = ("path", "key", "command", "head_repo")
"""Fields that are not shared."""
SENTENCES = ("error", "failed", "because", "plain_because", "notes", "broken", "finding")
"""Fields with sentences, in which the names of user and host are left out. Elsewhere such a word is another's."""
REST_OF_PATH = r"[^\s'\":;,()]*"
"""A pattern of what follows a folder in a path."""
ANY_PATH = rf"(?<![\w./])(?:~\w*)?/[\w.~@+-]{REST_OF_PATH}"
"""A pattern of an absolute path, not of the middle of an address."""


def report(model: str, machine: Row, found: Mapping[str, Row], names: PrivateNames) -> Row:
    """Return the report to share.

    Args:
        model: what the model is called in it.
        found: result by name of its part.
        names: what is left out.
    """
    results = {name: _named(result, model) for name, result in found.items()}
    cleaned: Row = _without({"schema": 1, "model": model, "machine": machine, "parts": results}, names)
    return cleaned


@dataclass(frozen=True)
class PrivateNames:
    """Patterns of what must not be in the report: paths, and in sentences the names of user and host too."""

    paths: re.Pattern[str]
    all: re.Pattern[str]

    @classmethod
    def of(cls, *paths: Path) -> PrivateNames:
        """Return those of this process. Of files in these folders the part below them is left, of others nothing."""
        places = {str(place) for path in paths for place in (path.absolute(), path.resolve())}
        outer = {str(place) for path in (Path.home(), Path.cwd()) for place in (path, path.resolve())}
        longest = [re.escape(place) for place in sorted(places - {"/"}, key=len, reverse=True)]
        longest += [re.escape(place) + REST_OF_PATH for place in sorted(outer - {"/"}, key=len, reverse=True)]
        words = {socket.gethostname(), socket.gethostname().split(".")[0]} - {""}
        with suppress(KeyError, OSError):  # a process without a user
            words.add(getpass.getuser())
        alone = [rf"\b{re.escape(word)}\b" for word in words]
        return cls(re.compile("|".join((*longest, ANY_PATH))), re.compile("|".join((*longest, ANY_PATH, *alone))))


def description(checkpoint: Checkpoint) -> str:
    """Return the name of a model that says nothing of its user: the Hub's repo, or its kind and size."""
    if checkpoint.repo:
        return checkpoint.repo
    text, quantization = checkpoint.text_config, checkpoint.config.get("quantization") or {}
    bits = f", {quantization['bits']} bits" if quantization.get("bits") else ""
    kind = checkpoint.config.get("model_type", "model")
    return f"{kind}, {text.get('num_hidden_layers', '?')} layers of {text.get('hidden_size', '?')}{bits}"


def as_html(report: Row, titles: Mapping[str, str]) -> str:
    """Return the report as a page."""
    machine = report["machine"]
    facts = [
        f"{name}: {machine[name]}" for name in ("system", "processor", "device", "device_name") if machine.get(name)
    ]
    facts += [f"memory: {size(machine['memory_bytes'])}"] if machine.get("memory_bytes") else []
    facts += [f"{name} {number}" for name, number in machine.get("versions", {}).items()]
    sections = [f"<h1>mlxmtp report: {escape(report['model'])}</h1>", f'<p class="soft">{escape(", ".join(facts))}</p>']
    for name, result in report["parts"].items():
        sections += [f"<h2>{escape(titles[name])}</h2>", *_part(name, result)]
    return page.document(f"mlxmtp report: {report['model']}", sections)


def _part(name: str, result: Row) -> list[str]:
    if reason := result.get("failed") or result.get("error"):
        return [f"<p>It failed: {escape(str(reason))}</p>"]
    if name == "products":
        return products(result["products"])
    if name != "doctor":
        return page.body(result)
    rows = [["identity", "promise", "rows", "context", "why"]]
    for identity, one in result.get("identities", {}).items():
        verdict = one["verdict"]
        rows.append([identity, *(str(verdict[field]) for field in ("promise", "rows", "context", "because"))])
    switch = result.get("switch")
    return [page.grid(rows), f"<p>{escape(switch['finding'])}</p>" if switch else ""]


def products(kinds: Sequence[Row]) -> list[str]:
    """Return the table of products, a line for each matrix and variant, and what failed."""
    counts = sorted({row["rows"] for kind in kinds for row in kind.get("rows", ())} - {1})
    table, failed = [["matrix, variant", "one row, µs", *(f"{count} rows" for count in counts)]], []
    for kind in kinds:
        name = matrix_name(kind)
        if reason := kind.get("failed"):
            failed.append(f"<p>{escape(name)} failed: {escape(reason)}</p>")
            continue
        cells = {(row["variant"], row["rows"]): row for row in kind["rows"]}
        one = cells["stock", 1]["seconds"]
        for variant in dict.fromkeys(row["variant"] for row in kind["rows"]):
            found = [cells.get((variant, count)) for count in (1, *counts)]
            times = [f"{one * 1e6:,.1f}" if variant == "stock" else _times(found[0], one)]
            table.append([f"{name}, {variant}", *times, *(_times(cell, one) for cell in found[1:])])
    note = '<p class="soft">in times of the stock product of one row; * other bits than one row\'s</p>'
    return [page.grid(table), note, *failed]


def matrix_name(kind: Row) -> str:
    """Return a kind of matrices in words."""
    packed = f"{kind['bits']} bits {kind['mode']} in {kind['group_size']}, " if kind["bits"] else ""
    return (
        f"{', '.join(kind['names'])}: {kind['count']} of {kind['outputs']} x {kind['inputs']}, {packed}{kind['dtype']}"
    )


def _times(cell: Row | None, one: float) -> str:
    return "-" if cell is None else f"{cell['seconds'] / one:.2f}{'' if cell['equal'] else ' *'}"


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
