"""What was typed in earlier chats, for the up key."""

import json
from contextlib import suppress
from pathlib import Path

from mlxmtp.files import data_folder
from mlxmtp_tui.records import line

KEPT = 500
LONGEST = 10_000
"""Characters of a prompt that is kept; longer ones were pasted."""


def file() -> Path:
    return data_folder() / "history.jsonl"


def load() -> list[str]:
    """The newest prompts, oldest first; nothing where there are none, or they cannot be read."""
    prompts = []
    with suppress(OSError):
        for content in file().read_bytes().split(b"\n")[-KEPT - 1 :]:
            with suppress(ValueError):  # a broken line costs itself only
                prompts.append(json.loads(content))
    return [prompt for prompt in prompts if isinstance(prompt, str)]


def add(prompt: str) -> None:
    """Append a prompt. A history that cannot be written is none; nobody is told."""
    if len(prompt) > LONGEST:
        return
    with suppress(OSError):
        file().parent.mkdir(parents=True, exist_ok=True)
        with file().open("ab") as out:
            out.write(line(prompt))
