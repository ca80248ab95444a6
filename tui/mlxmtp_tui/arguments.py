"""What the argument of a slash command can be, for completion in the prompt."""

from __future__ import annotations

import os
import re
from itertools import islice
from pathlib import Path

from mlxmtp.limits import MAX_DEPTH

ARGUMENT = re.compile(r"/([a-z]+) +(\S*)")
"""A command and the beginning of its argument."""
MAX_MODELS = 100
"""Models that are offered at most."""
_CACHED = re.compile(r"models--([\w.-]+?)--([\w.-]+)")
VALUES = {
    "depth": [("auto", "as it pays"), ("0", "plain decoding"), *((str(n), "") for n in range(1, MAX_DEPTH + 1))],
    "temp": [("0", "greedy"), ("0.6", ""), ("0.7", ""), ("1", "")],
    "seed": [("off", "another one each turn")],
    "system": [("off", "no system prompt")],
    "think": [("on", ""), ("off", ""), ("auto", "as the model does"), ("show", "fold or unfold it")],
    "stats": [("live", "now"), ("turns", "over the turns"), ("line", "one line")],
    "copy": [("code", "the last code block")],
    "keep": [("off", "forget what is kept")],
}
"""Arguments and explanations by command."""


def argument(line: str) -> tuple[str, str] | None:
    """Return command and beginning of the argument, if the line is a command that has something to offer."""
    match = ARGUMENT.fullmatch(line)
    return (match[1], match[2]) if match and (match[1] in VALUES or match[1] == "model") else None


def completions(command: str, beginning: str) -> list[tuple[str, str]]:
    """Return the arguments that contain what was typed, with explanations; those that begin with it come first."""
    values = VALUES.get(command) or [("demo", "the bundled model"), *((name, "") for name in cached_models())]
    typed = beginning.lower()
    found = [value for value in values if value[0].lower().startswith(typed)]
    if typed and command == "model":
        found += [value for value in values if typed in value[0].lower() and value not in found]
    return [value for value in found if value[0] != beginning]


def cached_models() -> list[str]:
    """Return the repos of the Hub cache by the names of its folders: no model is read, and no client is imported."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    hub = os.path.join(os.environ.get("HF_HOME") or os.path.join(home, "huggingface"), "hub")
    cache = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or hub
    folders = Path(os.path.expanduser(cache)).glob("models--*--*")
    matches = (_CACHED.fullmatch(folder.name) for folder in folders)
    return sorted(islice((f"{match[1]}/{match[2]}" for match in matches if match), MAX_MODELS))
