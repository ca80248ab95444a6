"""Messages as lines of JSON: an object with the class in `type`, and the fields."""

import json
from collections.abc import Callable
from dataclasses import asdict, fields, is_dataclass
from typing import Any

from mlxmtp.decoding.stats import Stats
from mlxmtp.engine.request import GenerationOptions
from mlxmtp.errors import MlxmtpError
from mlxmtp.worker.messages import CachedModel, Command, Event, Memory


class ProtocolError(MlxmtpError):
    """A line is not a message: worker and client are of different versions, or something else wrote it."""


_CLASSES: dict[str, Any] = {kind.__name__: kind for base in (Command, Event) for kind in base.__subclasses__()}
_FIELD_DECODERS: dict[str, Callable[[Any], Any]] = {
    "settings": lambda content: GenerationOptions(**content),
    "stats": Stats.from_dict,
    "memory": lambda content: Memory(**content),
    "models": lambda content: [CachedModel(**model) for model in content],
}
"""For the fields that hold dataclasses; each of these names means the same in all messages."""


def encode(message: Command | Event) -> bytes:
    """The line of a message, with its line end."""
    shallow = {item.name: getattr(message, item.name) for item in fields(message)}
    return json.dumps({"type": type(message).__name__, **shallow}, default=_encode_dataclass).encode() + b"\n"


def decode(line: bytes) -> Any:
    """The message of a line.

    Raises:
        ProtocolError: the line is not a message.
    """
    try:
        content = json.loads(line)
        kind = _CLASSES[content.pop("type")]
        for name, decoder in _FIELD_DECODERS.items():
            if content.get(name) is not None:
                content[name] = decoder(content[name])
        return kind(**content)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ProtocolError(f"not a message of this version: {line[:200]!r} ({error!r})") from error


def _encode_dataclass(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"{value!r} has no place in a message")
