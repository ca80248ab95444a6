"""What was typed in earlier chats, for the up key."""

import json
from contextlib import suppress
from pathlib import Path

KEPT = 500
LONGEST = 10_000
"""Characters of a prompt that is kept; longer ones were pasted."""


def file() -> Path:
    from platformdirs import user_data_path

    return user_data_path("mlxmtp", appauthor=False) / "history.jsonl"


def load() -> list[str]:
    """The newest prompts, oldest first; nothing where there are none, or they cannot be read."""
    try:
        lines = file().read_text(encoding="utf-8").splitlines()[-KEPT:]
        return [line for line in map(json.loads, lines) if isinstance(line, str)]
    except (OSError, ValueError):
        return []


def add(prompt: str) -> None:
    """Keep a prompt. A history that cannot be written is none; nobody is told."""
    if len(prompt) > LONGEST:
        return
    with suppress(OSError):
        file().parent.mkdir(parents=True, exist_ok=True)
        with file().open("a", encoding="utf-8") as out:
            out.write(json.dumps(prompt, ensure_ascii=False) + "\n")
