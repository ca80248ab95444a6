"""Prompts by workload, built-in or from a file, and long texts for the context lengths."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mlxmtp.engine.prompt import encode, render
from mlxmtp.errors import OptionError, PromptError
from mlxmtp.files import parse_json

BUILT_IN = "prompts.jsonl"
"""Name of the built-in prompts, a file of this package."""
FIELDS = "an object with `workload`, a name, and `turns`, a list of texts"
# Modules of Python's standard library are on every machine. The demo model was not trained on these.
LONG_TEXTS = (
    "statistics", "fractions", "calendar", "heapq", "textwrap", "csv", "string", "queue", "shlex", "bisect",
    "argparse", "typing", "inspect", "tarfile", "doctest", "subprocess", "pathlib", "zipfile", "ast", "difflib",
)  # fmt: skip


@dataclass(frozen=True)
class WorkloadPrompt:
    """A prompt of a workload.

    Args:
        workload: name of the workload.
        name: id of the prompt in its file.
        text: the user's message.
        raw: the text is continued as it is, without the chat template.
        tools: tool definitions for the chat template.
    """

    workload: str
    name: str
    text: str
    raw: bool = False
    tools: tuple[dict[str, Any], ...] = ()

    def tokens(self, tokenizer: Any) -> tuple[int, ...]:
        """Return the prompt's token ids. Without a chat template, they are those of the text."""
        if self.tools and not self.raw and tokenizer.has_chat_template:
            message = {"role": "user", "content": self.text}
            return tuple(render(tokenizer, [message], tools=self.tools).tokens)
        return tuple(encode(tokenizer, self.text, raw=self.raw))


def load_prompts(path: Path | None = None) -> list[WorkloadPrompt]:
    """Return the prompts of a JSON-lines file, or the built-in ones. Only the first turn of each is used.

    Raises:
        PromptError: the file cannot be read, has no prompts, or a line is not a prompt; the error names the line.
    """
    if path is None:
        return parse(files("mlxmtp.bench").joinpath(BUILT_IN).read_text(encoding="utf-8"), BUILT_IN)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise PromptError(f"{path}: {error.strerror or error}; expected a file of prompts, JSON lines") from error
    except UnicodeDecodeError as error:
        raise PromptError(f"{path}: not UTF-8 text ({error}); convert it first") from error
    return parse(text, str(path))


def parse(text: str, name: str) -> list[WorkloadPrompt]:
    """Return the prompts of JSON lines. Errors call the text `name`."""
    lines = enumerate(text.split("\n"), start=1)  # str.splitlines would also split at line ends inside of a text
    prompts = [_prompt(line, number, name) for number, line in lines if line.strip()]
    if not prompts:
        raise PromptError(f"{name} has no prompts; expected JSON lines, each {FIELDS}")
    return prompts


def select(prompts: Iterable[WorkloadPrompt], names: Sequence[str], limit: int) -> list[WorkloadPrompt]:
    """Return the first `limit` prompts of each named workload. Without names, all workloads are used.

    Raises:
        OptionError: a name is not the name of a workload.
    """
    workloads: dict[str, list[WorkloadPrompt]] = {}
    for prompt in prompts:
        workloads.setdefault(prompt.workload, []).append(prompt)
    if unknown := [name for name in names if name not in workloads]:
        raise OptionError(f"there is no workload {unknown[0]!r}; expected one of {', '.join(workloads)}")
    return [prompt for name in dict.fromkeys(names or workloads) for prompt in workloads[name][:limit]]


def long_text(tokenizer: Any, count: int) -> tuple[int, ...]:
    """Return the first `count` tokens of a long text: source code of Python's standard library.

    Raises:
        OptionError: the source code on this machine has fewer tokens.
    """
    tokens: list[int] = []
    for name in LONG_TEXTS:
        if len(tokens) >= count:
            break
        if source := _source(name):
            tokens += encode(tokenizer, source, raw=True)
    if len(tokens) < count:
        raise OptionError(f"only {len(tokens)} tokens of text for a context of {count}; expected Python's source code")
    return tuple(tokens[:count])


def _prompt(line: str, number: int, name: str) -> WorkloadPrompt:
    try:
        row = parse_json(line)
    except ValueError as error:
        raise PromptError(f"{name}, line {number}: not JSON ({error}); expected {FIELDS}") from error
    fields = row if isinstance(row, dict) else {}
    workload, turns, tools = fields.get("workload"), fields.get("turns"), fields.get("tools", [])
    if not isinstance(workload, str) or not workload or not isinstance(turns, list) or not turns:
        raise PromptError(f"{name}, line {number}: found {line.strip()[:60]!r}; expected {FIELDS}")
    if not isinstance(turns[0], str) or not turns[0]:
        raise PromptError(f"{name}, line {number}: the first of `turns` is {turns[0]!r}; expected a text")
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise PromptError(f"{name}, line {number}: `tools` is {tools!r}; expected a list of objects")
    return WorkloadPrompt(
        workload, str(fields.get("id", number)), turns[0], bool(fields.get("raw", False)), tuple(tools)
    )


def _source(module: str) -> str | None:
    """Return a module's source code without importing the module."""
    spec = find_spec(module)
    loader: Any = spec.loader if spec else None
    source: str | None = loader.get_source(module) if hasattr(loader, "get_source") else None
    return source
