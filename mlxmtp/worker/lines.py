"""Messages as lines of JSON: {"type": ..., its fields}."""

import json
from collections.abc import Callable
from dataclasses import asdict, fields, is_dataclass
from typing import Any

from mlxmtp.decoding.stats import Stats
from mlxmtp.engine.request import GenerationOptions
from mlxmtp.errors import MlxmtpError
from mlxmtp.worker.messages import Command, Event, Memory, ModelFound


class ProtocolError(MlxmtpError):
    """A line that is no message: worker and client are not of the same version, or something else wrote it."""


_TYPES: dict[str, Any] = {kind.__name__: kind for base in (Command, Event) for kind in base.__subclasses__()}


def encode(message: Command | Event) -> bytes:
    """A line of JSON, its end included."""
    shallow = {item.name: getattr(message, item.name) for item in fields(message)}
    return json.dumps({"type": type(message).__name__, **shallow}, default=_object).encode() + b"\n"


def decode(line: bytes) -> Any:
    """The message of a line.

    Raises:
        ProtocolError: it is none.
    """
    try:
        content = json.loads(line)
        kind = _TYPES[content.pop("type")]
        for name, read in _NESTED.items():
            if content.get(name) is not None:
                content[name] = read(content[name])
        return kind(**content)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ProtocolError(f"not a message of this version: {line[:200]!r} ({error!r})") from error


def _object(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"{value!r} has no place in a message")


_NESTED: dict[str, Callable[[Any], Any]] = {
    "settings": lambda content: GenerationOptions(**content),
    "stats": Stats.from_dict,
    "memory": lambda content: Memory(**content),
    "found": lambda content: [ModelFound(**one) for one in content],
}
