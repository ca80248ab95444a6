"""Read the JSON body of a request. Every field that is used is checked; an error names the field."""

from __future__ import annotations

import asyncio
import json
import math
import reprlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn

from starlette.requests import Request

from mlxmtp.server.errors import ApiError

MAX_NESTING = 100
"""Levels of nesting in a body. More could exhaust the stack of the code that walks through it."""
MAX_BODIES = 3
"""Bodies of the largest size that are held at a time; more of smaller ones."""
BODY_S = 120.0
"""Seconds in which a body must arrive."""
MAX_UNREAD = 12
"""Names of unread fields in one line of the log."""


class JsonObject:
    """The fields of a JSON object. Null counts as absent.

    Args:
        content: the parsed JSON value.
        path: where it is in the body, for error messages; "" for the body itself.

    Raises:
        ApiError: it is not an object. Every method raises it where a field has the wrong type.
    """

    def __init__(self, content: Any, path: str = "") -> None:
        if not isinstance(content, Mapping):
            found = short_repr(content)
            raise ApiError(f"{path or 'the body'} is {found}; expected a JSON object", param=path or None)
        self._content = content
        self._path = path
        self._read: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return self.get(name) is not None

    @property
    def content(self) -> Mapping[str, Any]:
        """The object as it is."""
        return self._content

    def get(self, name: str) -> Any:
        """The value as it is; None: absent."""
        self._read.add(name)
        return self._content.get(name)

    def unread(self, *ignored: str) -> list[str]:
        """Names of the fields that no method has read so far, shortened for the log, without the `ignored` ones."""
        known = self._read.union(ignored)
        unread = [str(name)[:40] for name, value in self._content.items() if value is not None and name not in known]
        return unread[:MAX_UNREAD]

    def number(self, name: str, low: float, high: float) -> float | None:
        value = self.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            self.reject(name, f"a number from {low:g} to {high:g}")
        return float(value)

    def integer(self, name: str, low: int, high: int | None = None) -> int | None:
        if name not in self:
            return None
        value = whole_number(self.get(name))
        if value is None or value < low or (high is not None and value > high):
            self.reject(name, f"a whole number of at least {low}" if high is None else f"{low} to {high}")
        return value

    def boolean(self, name: str) -> bool | None:
        value = self.get(name)
        if value is not None and not isinstance(value, bool):
            self.reject(name, "true or false")
        return value

    def string(self, name: str) -> str | None:
        value = self.get(name)
        if value is not None and not isinstance(value, str):
            self.reject(name, "a string")
        return value

    def strings(self, name: str) -> list[str]:
        """A string or a list of strings, as a list."""
        value = self.get(name)
        value = [] if value is None else [value] if isinstance(value, str) else value
        if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
            self.reject(name, "a string or a list of strings, none of them empty")
        return list(value)

    def object(self, name: str) -> JsonObject | None:
        value = self.get(name)
        return None if value is None else JsonObject(value, self.path_of(name))

    def objects(self, name: str) -> list[JsonObject]:
        """A list of objects; absent: an empty list."""
        value = self.get(name)
        if value is not None and not isinstance(value, list):
            self.reject(name, "a list of objects")
        return [JsonObject(item, f"{self.path_of(name)}[{i}]") for i, item in enumerate(value or [])]

    def path_of(self, name: str) -> str:
        """The path of a field in the body, such as `messages[0].role`."""
        return f"{self._path}.{name}" if self._path else name

    def reject(self, name: str, expected: str) -> NoReturn:
        """Raise the error of a field with a wrong value."""
        path, found = self.path_of(name), short_repr(self.get(name))
        raise ApiError(f"{path} is {found}; expected {expected}", code="invalid_value", param=path)

    def reject_unless(self, name: str, *neutral: Any) -> None:
        """Raise the error of an unsupported parameter, unless it is absent or has a `neutral` value."""
        value, path = self.get(name), self.path_of(name)
        if value is not None and value not in neutral:
            raise ApiError(
                f"{path} is {short_repr(value)}, which this server does not support; leave it out",
                code="unsupported_parameter",
                param=path,
            )


class HeldBodies:
    """Bounds the bytes of all bodies that are held. The largest unfinished one makes room for the others.

    Args:
        max_bytes: the limit of one.
    """

    def __init__(self, max_bytes: int) -> None:
        self._limit = MAX_BODIES * max_bytes
        self._sizes: dict[HeldBody, int] = {}

    @contextmanager
    def hold(self) -> Iterator[HeldBody]:
        """Hold the body of one request."""
        body = HeldBody(self)
        self._sizes[body] = 0
        try:
            yield body
        finally:
            del self._sizes[body]

    def grow(self, body: HeldBody, count: int) -> None:
        """Add `count` bytes to a body.

        Raises:
            ApiError: there is no room, and no other body that could make it.
        """
        self._sizes[body] += count
        while sum(self._sizes.values()) > self._limit:
            largest = max((each for each in self._sizes if each.deadline), key=self._sizes.__getitem__, default=body)
            if largest is body:
                raise _no_room()
            self._sizes[largest] = 0
            largest.make_room()


class HeldBody:
    """The body of one request.

    Attributes:
        deadline: when it must be complete; None: it is.
    """

    def __init__(self, bodies: HeldBodies) -> None:
        self.deadline: asyncio.Timeout | None = None
        self._bodies = bodies
        self._made_room = False

    async def receive(self, request: Request, max_bytes: int) -> bytearray:
        """Return the content of a request.

        Raises:
            ApiError: it has more than `max_bytes` bytes, comes too slowly, or there is no room for it.
        """
        content = bytearray()
        try:
            async with asyncio.timeout(BODY_S) as self.deadline:
                async for chunk in request.stream():
                    content += chunk
                    if len(content) > max_bytes:
                        raise _too_large(len(content), max_bytes)
                    self._bodies.grow(self, len(chunk))
        except TimeoutError:
            raise _no_room() if self._made_room else _too_slow() from None
        finally:
            self.deadline = None
        return content

    def make_room(self) -> None:
        """End the reading of this body, in favour of another."""
        assert self.deadline
        self._made_room = True
        self.deadline.reschedule(0)
        self.deadline = None


async def read_body(request: Request, max_bytes: int, held: HeldBody) -> JsonObject:
    """Receive and parse the body of a request.

    Raises:
        ApiError: it has more than `max_bytes` bytes, is compressed, or is not a JSON object; or as `HeldBody.receive`.
    """
    content_type = request.headers.get("content-type", "")
    if content_type.partition(";")[0].strip().lower() != "application/json":  # a page may send text without asking
        message = f"content-type is {short_repr(content_type)}; expected application/json"
        raise ApiError(message, status=415, code="unsupported_media_type")
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        message = f"content-encoding is {encoding}, which this server does not decode; send the body as it is"
        raise ApiError(message, status=415, code="unsupported_encoding")
    announced = request.headers.get("content-length", "0")
    if announced.isdigit() and int(announced) > max_bytes:
        raise _too_large(int(announced), max_bytes)
    body = await held.receive(request, max_bytes)
    try:
        content = json.loads(body, parse_constant=_reject_number, parse_float=_finite_float)
    except RecursionError as error:
        raise _too_deep() from error
    except ValueError as error:
        message = f"the body is no JSON ({error})" if body else "the body is empty; expected a JSON object"
        raise ApiError(message, code="invalid_json") from error
    if is_nested_too_deeply(content):
        raise _too_deep()
    return JsonObject(content)


def whole_number(value: Any) -> int | None:
    """The value of a JSON number that is whole, which some clients write as 42.0; None: it is something else."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def short_repr(value: Any) -> str:
    """A value for an error message, at most 80 characters."""
    text = reprlib.repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def is_nested_too_deeply(content: Any) -> bool:
    """Whether a JSON value has more than `MAX_NESTING` levels."""
    level = [content]
    for _ in range(MAX_NESTING):
        containers = [item for item in level if isinstance(item, dict | list)]
        level = [inner for item in containers for inner in (item.values() if isinstance(item, dict) else item)]
        if not level:
            return False
    return True


def _finite_float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        _reject_number(text)
    return number


def _reject_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number that JSON has, or too large a one")


def _too_deep() -> ApiError:
    return ApiError(f"the body is nested too deeply; expected at most {MAX_NESTING} levels", code="invalid_json")


def _too_large(found: int, limit: int) -> ApiError:
    message = f"the body has {found:,} bytes or more, the limit is {limit:,}; raise it with --max-body"
    return ApiError(message, status=413, code="request_too_large")


def _too_slow() -> ApiError:
    message = f"the body was not complete after {BODY_S:g} seconds"
    return ApiError(message, status=408, code="request_timeout")


def _no_room() -> ApiError:
    message = "the bodies of other requests leave no room for this one; try again later"
    return ApiError(message, status=503, code="bodies_full", retry_after=2)
