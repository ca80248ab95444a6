"""The table of slash commands: for completion, help, the palette and dispatch."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class SlashCommand:
    """`/name arguments`, handled by the method `command_NAME` of `SlashCommandApp`."""

    name: str
    arguments: str
    help: str

    @property
    def usage(self) -> str:
        return f"/{self.name} {self.arguments}".rstrip()


COMMANDS = (
    SlashCommand("help", "", "keys and commands"),
    SlashCommand("model", "[PATH|REPO]", "choose another model, or load this one"),
    SlashCommand("clear", "", "begin a new chat"),
    SlashCommand("system", "[TEXT|off]", "the instructions that stand before the chat"),
    SlashCommand("depth", "[N|auto]", "drafts a round; 0 decodes plainly"),
    SlashCommand("temp", "[T]", "temperature; 0 is greedy"),
    SlashCommand("seed", "[N|off]", "the same seed gives the same tokens"),
    SlashCommand("max", "[N]", "at most N tokens an answer"),
    SlashCommand("think", "[on|off|auto|show]", "let the model think before it answers; show unfolds it"),
    SlashCommand("keep", "[off]", "keep temperature and thinking for the next starts"),
    SlashCommand("stats", "[live|turns|line]", "the statistics: live, over the turns, or one line"),
    SlashCommand("bench", "", "measure MTP against plain decoding on this chat"),
    SlashCommand("retry", "", "answer the last message again"),
    SlashCommand("edit", "", "take the last message back to change it"),
    SlashCommand("copy", "[code [N]]", "copy the last answer, or its last (Nth) code block"),
    SlashCommand("save", "[TITLE]", "name this chat; it is saved as it goes"),
    SlashCommand("load", "[CHAT]", "go on with a saved chat"),
    SlashCommand("export", "[FILE]", "write the chat as Markdown"),
    SlashCommand("exit", "", "leave"),
)
BY_NAME = {command.name: command for command in COMMANDS}
ALIASES = {"quit": "exit", "new": "clear", "resume": "load", "regenerate": "retry", "continue": "load"}


def parse(text: str) -> tuple[str, str] | None:
    """The name of a command, aliases resolved, and its arguments; None where the text is not a command."""
    match = re.fullmatch(r"/([a-z]+)(?:\s+(.*))?", text.rstrip(), re.DOTALL | re.IGNORECASE)
    if not match:
        return None  # a path, for instance
    name = match[1].lower()
    return ALIASES.get(name, name), match[2] or ""


def completions(word: str) -> list[SlashCommand]:
    """The commands that begin with `word`, its slash included."""
    return [command for command in COMMANDS if command.name.startswith(word[1:].lower())]
