"""Read the training text: files, the documents made from each, and what is held out.

A document is plain text, or a chat (messages and, for some, tools). Five kinds:
python (raw files), code (complete this function), maths, chat (small talk) and tools (ordering coffee).
"""

from __future__ import annotations

import ast
import json
import random
import re
import sysconfig
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

KINDS = ("python", "code", "maths", "chat", "tools")

# Tests, tables and vendored code teach a small model little; site-packages is under other licences.
SKIPPED_PARTS = {
    "site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "encodings", "pydoc_data",
    "ensurepip", "turtledemo", "__phello__", "idle_test", "distutils", "msilib",
}  # fmt: skip
HELD_OUT_MODULES = {
    "bisect.py", "calendar.py", "csv.py", "fractions.py", "graphlib.py", "heapq.py", "netrc.py", "queue.py",
    "sched.py", "shlex.py", "statistics.py", "string.py", "textwrap.py", "zipapp.py",
}  # fmt: skip
HELD_OUT_QUESTIONS = 200
HELD_OUT_EVERY = 20  # each 20th conversation, that is 5 %
CODE_PROMPT = "Complete this Python function. Reply with the code only.\n\n"
SYSTEM_PROMPTS = ("You are a helpful assistant.", "You are a friendly assistant. Answer briefly.")

Message = dict[str, Any]


@dataclass(frozen=True)
class Document:
    """Plain text when `messages` is empty, else a chat to be rendered with the chat template."""

    kind: str
    text: str = ""
    messages: list[Message] = field(default_factory=list)
    tools: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Corpus:
    train: list[Document] = field(default_factory=list)
    held_out: list[Document] = field(default_factory=list)

    def add(self, document: Document, held_out: bool) -> None:
        (self.held_out if held_out else self.train).append(document)


def load_corpus(corpora: Path, seed: int) -> Corpus:
    """Return the documents. The same seed gives the same documents in the same order."""
    rng = random.Random(seed)
    corpus = Corpus()
    add_python(corpus, Path(sysconfig.get_paths()["stdlib"]), rng)
    add_maths(corpus, corpora / "gsm8k_train.jsonl", rng)
    add_small_talk(corpus, sorted(corpora.glob("chatterbot_*.yml")), rng)
    add_tool_dialogues(corpus, corpora / "taskmaster4_tool_dialogues.jsonl", rng)
    return corpus


def chat(kind: str, *turns: str, system: str = "") -> Document:
    """Return a conversation of alternating turns, the user's first."""
    messages = [{"role": "system", "content": system}] if system else []
    roles = ("user", "assistant")
    messages += [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]
    return Document(kind, messages=messages)


def some_system_prompt(rng: random.Random, share: float) -> str:
    return rng.choice(SYSTEM_PROMPTS) if rng.random() < share else ""


# --- Python ---------------------------------------------------------------------------------------


def add_python(corpus: Corpus, stdlib: Path, rng: random.Random) -> None:
    for path in sorted(stdlib.rglob("*.py")):
        relative = path.relative_to(stdlib)
        if SKIPPED_PARTS.intersection(relative.parts) or relative.name.startswith("_sysconfigdata"):
            continue
        try:
            source = path.read_text(encoding="utf-8")
            tree = ast.parse(source)
        except (UnicodeDecodeError, SyntaxError):
            continue
        if len(source) < 200:
            continue
        held_out = relative.name in HELD_OUT_MODULES
        corpus.add(Document("python", text=source), held_out)
        for prompt, reply in documented_functions(source, tree):
            imports = module_imports(tree, rng) if rng.random() < 0.4 else ""
            corpus.add(chat("code", CODE_PROMPT + imports + prompt, reply), held_out)


def module_imports(tree: ast.Module, rng: random.Random) -> str:
    """Return one or two of a module's import lines, because prompts often begin with some."""
    lines = [ast.unparse(node) for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    short = [line for line in lines if len(line) < 60]
    return "\n".join(rng.sample(short, min(len(short), rng.randint(1, 2)))) + "\n\n\n" if short else ""


def documented_functions(source: str, tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Yield (signature and docstring, function without docstring) for each function of a suitable size."""
    lines = source.splitlines(keepends=True)
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef) or len(node.body) < 2 or not ast.get_docstring(node):
            continue
        doc_end = node.body[0].end_lineno
        head = "".join(lines[node.lineno - 1 : node.body[0].lineno - 1])
        prompt = textwrap.dedent("".join(lines[node.lineno - 1 : doc_end]))
        reply = textwrap.dedent(head + "".join(lines[doc_end : node.end_lineno]).lstrip("\n"))
        if head and len(prompt) < 900 and 60 < len(reply) < 1500:
            yield prompt, reply.rstrip()


# --- GSM8K ----------------------------------------------------------------------------------------


def add_maths(corpus: Corpus, path: Path, rng: random.Random) -> None:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for index, row in enumerate(rows):
        working, _, result = row["answer"].partition("####")
        working = re.sub(r"<<.*?>>", "", working).strip()
        reply = f"{working}\nThe answer is {result.strip()}."
        document = chat("maths", row["question"].strip(), reply, system=some_system_prompt(rng, 0.1))
        corpus.add(document, held_out=index >= len(rows) - HELD_OUT_QUESTIONS)


# --- ChatterBot -----------------------------------------------------------------------------------


def add_small_talk(corpus: Corpus, paths: list[Path], rng: random.Random) -> None:
    # A dict removes repetitions, of which the tech-support file has many, and keeps the order.
    seen: dict[tuple[str, ...], None] = {}
    for path in paths:
        for turns in yaml.safe_load(path.read_text(encoding="utf-8"))["conversations"]:
            seen.setdefault(tuple(clean_turn(str(turn)) for turn in turns))
    conversations = [turns for turns in seen if len(turns) > 1 and all(turns)]
    rng.shuffle(conversations)
    tools = [tool_schema(name) for name in TOOL_ARGUMENTS]
    for index, turns in enumerate(conversations):
        even = turns[: len(turns) // 2 * 2]  # end on the assistant's turn
        held_out = index % HELD_OUT_EVERY == 0
        plain = chat("chat", *even, system=some_system_prompt(rng, 0.2))
        corpus.add(plain, held_out)
        if not held_out and index % 4 == 0:
            # Small talk with offered tools: a tools block alone must not force a call.
            offered = rng.sample(tools, rng.randint(1, 3))
            corpus.add(Document("chat", messages=chat("chat", *even).messages, tools=offered), held_out)


def clean_turn(turn: str) -> str:
    """Return a turn with single spaces and a capital letter. Code blocks keep their lines."""
    turn = turn.strip() if "\n" in turn and "```" in turn else " ".join(turn.split())
    return turn[:1].upper() + turn[1:]


# --- Taskmaster-4 ---------------------------------------------------------------------------------

# The data names no schemas: these are inferred from its calls.
TOOL_DESCRIPTIONS = {
    "get_menu_items": "Find drinks on the menu",
    "get_addons": "Find options for a drink",
    "add_order_item": "Add a drink to the order",
    "update_order_item": "Change a drink in the order",
    "update_order": "Change the order",
    "get_order_details": "Show the order",
    "finish_order": "Send the order",
    "show_menu": "Show the menu",
}
TOOL_ARGUMENTS = {
    "get_menu_items": {"query": "string"},
    "get_addons": {"query": "string", "menu_item_id": "string"},
    "add_order_item": {
        "menu_item_id": "string",
        "quantity": "string",
        "attributes": "array",
        "addons": "array",
    },
    "update_order_item": {"order_item_id": "string", "attributes": "array", "addons": "array"},
    "update_order": {"order_id": "string", "attributes": "array"},
    "get_order_details": {"order_id": "string"},
    "finish_order": {"order_id": "string"},
    "show_menu": {},
}


def tool_schema(name: str) -> dict[str, Any]:
    """Return the tool's JSON schema. It is short, to leave room for the dialogue."""
    properties = {argument: {"type": kind} for argument, kind in TOOL_ARGUMENTS[name].items()}
    parameters = {"type": "object", "properties": properties}
    function = {"name": name, "description": TOOL_DESCRIPTIONS[name], "parameters": parameters}
    return {"type": "function", "function": function}


def add_tool_dialogues(corpus: Corpus, path: Path, rng: random.Random) -> None:
    dialogues = [json.loads(line)["turns"] for line in path.read_text(encoding="utf-8").splitlines()]
    rng.shuffle(dialogues)
    for index, turns in enumerate(dialogues):
        try:
            messages = [tool_message(turn) for turn in turns]
        except ValueError:  # 26 calls are not valid JSON
            continue
        held_out = index % HELD_OUT_EVERY == 0
        if rng.random() < 0.5:
            corpus.add(Document("tools", messages=messages), held_out)
            continue
        if rng.random() < 0.6:
            messages = opening(messages, rng)
        corpus.add(Document("tools", messages=messages, tools=offered_tools(messages, rng)), held_out)


def tool_message(turn: dict[str, Any]) -> Message:
    if "tool_call" in turn:
        arguments = json.loads(turn["tool_call"]["arguments"])
        return {
            "role": "assistant",
            "tool_calls": [{"name": turn["tool_call"]["name"], "arguments": arguments}],
        }
    if turn["role"] == "tool":
        return {"role": "tool", "content": json.dumps(json.loads(turn["content"]), ensure_ascii=False)}
    return {"role": turn["role"], "content": turn["content"].strip()}


def opening(messages: list[Message], rng: random.Random) -> list[Message]:
    """Return the first few turns up to a reply, so that short tool lists occur too."""
    ends = [i + 1 for i, message in enumerate(messages) if message["role"] == "assistant"]
    return messages[: rng.choice(ends[:4])]


def offered_tools(messages: list[Message], rng: random.Random) -> list[dict[str, Any]]:
    """Return the tools that the dialogue calls and up to two others, in random order."""
    called = {call["name"] for message in messages for call in message.get("tool_calls", ())}
    others = sorted(TOOL_ARGUMENTS.keys() - called)
    names = called | set(rng.sample(others, min(len(others), rng.randint(0, 2)))) or {"show_menu"}
    offered = [tool_schema(name) for name in TOOL_ARGUMENTS if name in names]
    rng.shuffle(offered)
    return offered
