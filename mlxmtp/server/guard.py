"""Who may ask, and how much: API key, cross-origin requests, size of a body."""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Callable
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from mlxmtp.server.fields import Fields
from mlxmtp.server.problems import ApiError

OPEN = ("/health",)
"""Paths that need no key."""
LEVELS = 100
"""Nesting of a body; far below what exhausts the stack of whatever works on it."""


class KeyCheck:
    """Lets nobody pass without the key, as `Authorization: Bearer KEY` or `x-api-key: KEY`.

    Args:
        shape: an error's body on a path.
    """

    def __init__(self, app: ASGIApp, key: str, shape: Callable[[str, ApiError], dict[str, Any]]) -> None:
        self._app = app
        self._key = key.encode()
        self._shape = shape

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN or self._known(Headers(scope=scope)):
            await self._app(scope, receive, send)
            return
        problem = ApiError("the API key is missing or wrong; the server was started with --api-key", status=401)
        problem.code = "invalid_api_key"
        response = JSONResponse(self._shape(scope["path"], problem), 401, {"www-authenticate": "Bearer"})
        await response(scope, receive, send)

    def _known(self, headers: Headers) -> bool:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = [headers.get("x-api-key", ""), token.strip() if scheme.lower() == "bearer" else ""]
        return any([secrets.compare_digest(one.encode(), self._key) for one in given])  # noqa: C419 - both, always


async def read_body(request: Request, limit: int) -> Fields:
    """The JSON object of a request.

    Raises:
        ApiError: it has more than `limit` bytes, is compressed, or is no JSON object.
    """
    coding = request.headers.get("content-encoding", "identity")
    if coding.lower() != "identity":
        message = f"content-encoding is {coding}, which this server does not decode; send the body as it is"
        raise ApiError(message, status=415, code="unsupported_encoding")
    announced = request.headers.get("content-length", "0")
    if announced.isdigit() and int(announced) > limit:
        raise _too_large(int(announced), limit)
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > limit:
            raise _too_large(len(body), limit)
    try:
        content = json.loads(body, parse_constant=_no_number, parse_float=_finite)
    except RecursionError as error:
        raise _too_deep() from error
    except ValueError as error:
        what = f"the body is no JSON ({error})" if body else "the body is empty; expected a JSON object"
        raise ApiError(what, code="invalid_json") from error
    _check_depth(content)
    return Fields(content)


def _check_depth(content: Any) -> None:
    level = [content]
    for _ in range(LEVELS):
        inner = [one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list)]
        level = [one for several in inner for one in several]
        if not level:
            return
    raise _too_deep()


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _no_number(text)


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number that JSON has, or too large a one")


def client_of(request: Request, body: Fields) -> str:
    """Whose turn it is in the queue: a session where the client names one, else the program and where it runs."""
    metadata = body.any("metadata")
    named = (
        body.any("prompt_cache_key")
        or body.any("user")
        or (metadata.get("user_id") if isinstance(metadata, dict) else None)
        or request.headers.get("session_id")
        or request.headers.get("authorization")
        or request.headers.get("x-api-key")
    )
    host = request.client.host if request.client else ""
    return f"{host} {request.headers.get('user-agent', '')} {named or ''}"


def _too_deep() -> ApiError:
    return ApiError(f"the body is nested too deeply; expected at most {LEVELS} levels", code="invalid_json")


def _too_large(found: int, limit: int) -> ApiError:
    message = f"the body has {found:,} bytes or more, the limit is {limit:,}; raise it with --max-body"
    return ApiError(message, status=413, code="request_too_large")
