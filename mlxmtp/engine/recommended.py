"""The sampling options that a model's files recommend. Imports no MLX."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlxmtp.engine.request import GenerationOptions
from mlxmtp.errors import OptionError
from mlxmtp.files import read_json

FIELDS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
"""Fields of generation_config.json that are used."""


def recommended_sampling(folder: Path, warn: Callable[[str], None]) -> dict[str, Any]:
    """Return the fields of `GenerationOptions` that a model's generation_config.json recommends.

    The user did not write the model's files, so a damaged file or a value out of range is reported and ignored.

    Args:
        folder: of the model.
        warn: called with a sentence on what is ignored.
    """
    file = folder / "generation_config.json"
    if not file.exists():
        return {}
    try:
        content = read_json(file)
        if not isinstance(content, dict):
            raise ValueError("expected a JSON object")
    except (OSError, ValueError) as error:
        warn(f"{file} is ignored: {error}")
        return {}
    fields = {"temperature": 0.0} if content.get("do_sample") is False else {}
    for name in FIELDS:
        if (value := content.get(name)) is None:
            continue
        try:
            GenerationOptions(**{name: value})
        except OptionError as error:
            warn(f"{file}: {error}; it is ignored")
        else:
            fields[name] = value
    return fields
