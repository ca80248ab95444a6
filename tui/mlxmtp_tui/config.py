"""The settings that the chat keeps from one start to the next, in a file of the platform's folder for them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import platformdirs

from mlxmtp.engine.request import GenerationOptions
from mlxmtp.errors import MlxmtpError
from mlxmtp.files import parse_json, read_regular, write_whole

KEPT = {"temperature": (int, float), "thinking": (bool,)}
"""The settings that are kept, with their types. A depth is not: a model without a head would refuse it."""
MAX_BYTES = 1 << 16
"""Bytes of the file that are read."""


def file() -> Path:
    """Return the path of the file."""
    return platformdirs.user_config_path("mlxmtp", appauthor=False) / "chat.json"


def load() -> tuple[dict[str, Any], str]:
    """Return the kept settings, and what is wrong with the file in one line; then nothing of it is used."""
    try:
        return checked(parse_json(read_regular(file(), MAX_BYTES))), ""
    except FileNotFoundError:
        return {}, ""
    except (OSError, ValueError, MlxmtpError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).split("\n")[0]
        return {}, f"{file()}: not used ({reason}); correct it or remove it"


def checked(content: Any) -> dict[str, Any]:
    """Return the settings of a file's content. Keys of other versions are left out.

    Raises:
        ValueError: it is no object, or a value has another type. OptionError: a value is out of range.
    """
    if not isinstance(content, dict):
        raise ValueError("expected a JSON object")
    kept = {name: content[name] for name in KEPT if name in content}
    for name, value in kept.items():
        if type(value) not in KEPT[name]:
            raise ValueError(f"{name} is {json.dumps(value)[:40]}")
    GenerationOptions(**kept)
    return kept


def save(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Keep those of the chosen settings that can be kept, in place of the earlier ones, and return them.

    Raises:
        OSError: the file cannot be written.
    """
    kept = {name: chosen[name] for name in KEPT if chosen.get(name) is not None}
    write_whole(file(), json.dumps(kept, indent=2) + "\n")
    return kept
