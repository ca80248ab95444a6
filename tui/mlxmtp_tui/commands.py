"""The slash commands: one table, for completion, help, the palette and dispatch."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """`/name arguments`; the app's method `command_NAME` carries it out."""

    name: str
    arguments: str
    help: str

    @property
    def usage(self) -> str:
        return f"/{self.name} {self.arguments}".rstrip()


COMMANDS = (
    Command("help", "", "keys and commands"),
    Command("model", "[PATH|REPO]", "choose another model, or load this one"),
    Command("clear", "", "begin a new chat"),
    Command("system", "[TEXT|off]", "the instructions that stand before the chat"),
    Command("depth", "[N|auto]", "drafts a round; 0 decodes plainly"),
    Command("temp", "[T]", "temperature; 0 is greedy"),
    Command("seed", "[N|off]", "the same seed gives the same tokens"),
    Command("max", "[N]", "at most N tokens an answer"),
    Command("think", "[on|off|auto|show]", "let the model think before it answers; show unfolds it"),
    Command("stats", "[live|turns|line]", "the statistics: live, over the turns, or one line"),
    Command("bench", "", "measure MTP against plain decoding on this chat"),
    Command("retry", "", "answer the last message again"),
    Command("edit", "", "take the last message back to change it"),
    Command("copy", "[code [N]]", "copy the last answer, or its last (Nth) code block"),
    Command("save", "[TITLE]", "name this chat; it is saved as it goes"),
    Command("load", "[CHAT]", "go on with a saved chat"),
    Command("export", "[FILE]", "write the chat as Markdown"),
    Command("exit", "", "leave"),
)
BY_NAME = {command.name: command for command in COMMANDS}
ALIASES = {"quit": "exit", "new": "clear", "resume": "load", "regenerate": "retry", "continue": "load"}


def parse(text: str) -> tuple[str, str] | None:
    """The command's name, aliases resolved, and its arguments; None where the text is no command."""
    found = re.fullmatch(r"/([a-z]+)(?:\s+(.*))?", text.rstrip(), re.DOTALL | re.IGNORECASE)
    if not found:
        return None  # a path, say
    name = found[1].lower()
    return ALIASES.get(name, name), found[2] or ""


def completions(word: str) -> list[Command]:
    """Commands whose name begins as `word` does, its slash included."""
    return [command for command in COMMANDS if command.name.startswith(word[1:].lower())]
