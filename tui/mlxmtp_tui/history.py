"""The prompts of earlier chats, for the up key."""

import json
from contextlib import suppress
from pathlib import Path

from mlxmtp.files import data_folder
from mlxmtp_tui.records import line

MAX_PROMPTS = 500
"""Prompts that are read from the file."""
MAX_CHARACTERS = 10_000
"""Characters of a prompt that is written; longer ones were pasted."""


def file() -> Path:
    return data_folder() / "history.jsonl"


def load() -> list[str]:
    """The newest prompts, oldest first; empty where there is no file, or it cannot be read."""
    prompts = []
    with suppress(OSError):
        for content in file().read_bytes().split(b"\n")[-MAX_PROMPTS - 1 :]:
            with suppress(ValueError):  # a broken line costs no other
                prompts.append(json.loads(content))
    return [prompt for prompt in prompts if isinstance(prompt, str)]


def add(prompt: str) -> None:
    """Append a prompt. A file that cannot be written is ignored."""
    if len(prompt) > MAX_CHARACTERS:
        return
    with suppress(OSError):
        file().parent.mkdir(parents=True, exist_ok=True)
        with file().open("ab") as out:
            out.write(line(prompt))
