"""What a running server says of itself: the model and the context that clients are set to."""

from __future__ import annotations

from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from urllib.parse import urlsplit

from mlxmtp.files import parse_json

PATIENCE_S = 3.0
"""Seconds that the server has for each step of its answer."""
MAX_ANSWER_BYTES = 1_000_000
"""More than any list of one model has."""
MAX_MESSAGE = 400
"""Characters of an error's message."""
UNBOUNDED = 2**31 - 1
"""Tokens of a context whose model names no limit."""


@dataclass(frozen=True)
class Served:
    """The model and the context (in tokens) of a server."""

    model: str
    context: int


def ask(url: str, key: str) -> Served | str:
    """Return what the server at an address serves, or a sentence on why that is not known."""
    try:
        status, content = _get(url, "/v1/models", key)
        if status == 401:
            return f"the server at {url} refuses this key (status {status}); give --api-key"
        if status == 403:
            return f"the server at {url} refuses to answer: {_said(content)}"
        model = parse_json(content)["data"][0]
        name, context = model["id"], model["max_model_len"]
    except (OSError, HTTPException) as error:
        return f"no server answers at {url} ({error or type(error).__name__}); start `mlxmtp serve` first"
    except (ValueError, LookupError, TypeError):
        return f"what answers at {url} does not say its context"
    good = isinstance(name, str) and name.strip() and name.isprintable() and type(context) is int
    if not good or not 0 < context < UNBOUNDED:
        return f"the server at {url} names no context"
    return Served(name, context)


def _said(content: bytes) -> str:
    """The message of an error, as the server says it; of another answer, its status."""
    try:
        message = parse_json(content)["error"]["message"]
    except (ValueError, LookupError, TypeError):
        message = None
    return message[:MAX_MESSAGE] if isinstance(message, str) and message.isprintable() and message else "status 403"


def _get(url: str, path: str, key: str) -> tuple[int, bytes]:
    """The status and the body. Nothing is redirected and no proxy is asked: both would be sent the key."""
    parts = urlsplit(url)
    connect = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    connection = connect(parts.hostname or "", parts.port, timeout=PATIENCE_S)
    try:
        connection.request("GET", parts.path + path, headers={"Authorization": f"Bearer {key}"})
        answer = connection.getresponse()
        return answer.status, answer.read(MAX_ANSWER_BYTES)
    finally:
        connection.close()
