"""The prompts of earlier chats, for the up key."""

import os
from contextlib import suppress
from pathlib import Path

from mlxmtp.files import data_folder, open_regular, parse_json
from mlxmtp_tui.records import line

MAX_PROMPTS = 500
"""Prompts that are read from the file."""
MAX_CHARACTERS = 10_000
"""Characters of a prompt that is written; longer ones were pasted."""
MAX_BYTES = 16 << 20
"""Bytes at the end of the file that are read; `MAX_PROMPTS` of `MAX_CHARACTERS` rarely have more."""


def file() -> Path:
    return data_folder() / "history.jsonl"


def load() -> list[str]:
    """The newest prompts, oldest first; empty where there is no file, or it cannot be read."""
    prompts = []
    with suppress(OSError), open_regular(file()) as stream:
        stream.seek(max(0, os.fstat(stream.fileno()).st_size - MAX_BYTES))
        for content in stream.read(MAX_BYTES).split(b"\n")[-MAX_PROMPTS - 1 :]:
            with suppress(ValueError):  # a broken line costs no other
                prompts.append(parse_json(content))
    return [prompt for prompt in prompts if isinstance(prompt, str)]


def add(prompt: str) -> None:
    """Append a prompt. A file that cannot be written is ignored."""
    if len(prompt) > MAX_CHARACTERS:
        return
    with suppress(OSError):
        file().parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(file(), os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK, 0o600)
        with os.fdopen(handle, "ab") as out:
            os.fchmod(handle, 0o600)  # the file of an earlier version could be read by others
            out.write(line(prompt))
