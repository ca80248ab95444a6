"""Who may ask: holders of the API key, programs on this machine, and the web pages that `--cors` names."""

from __future__ import annotations

import ipaddress
import re
import secrets
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from mlxmtp.server.errors import ApiError

OPEN_PATHS = ("/health",)
"""Paths that need no API key."""
OWN_NAMES = ("localhost", "0.0.0.0", "host.docker.internal", "host.containers.internal")
"""Names of this machine: its own, and those that Docker and Podman give it inside a container."""
HOST = re.compile(r"(?:\[(?P<ip6>[^]]*)]|(?P<name>[^:]*))(?::\d*)?")
"""The form of a `Host` header."""
Respond = Callable[[str, ApiError], Response]
"""Makes the response to a request on a path that fails with an error."""


class ApiKeyCheck:
    """ASGI middleware that requires the key as `Authorization: Bearer KEY` or as `x-api-key: KEY`."""

    def __init__(self, app: ASGIApp, key: str, respond: Respond) -> None:
        self._app = app
        self._key = key.encode()
        self._respond = respond

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS or self._has_key(Headers(scope=scope)):
            await self._app(scope, receive, send)
            return
        message = "the API key is missing or wrong; send the one that the server was started with"
        response = self._respond(scope["path"], ApiError(message, status=401, code="invalid_api_key"))
        response.headers["www-authenticate"] = "Bearer"
        await response(scope, receive, send)

    def _has_key(self, headers: Headers) -> bool:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        keys = [headers.get("x-api-key", ""), token.strip() if scheme.lower() == "bearer" else ""]
        return any([secrets.compare_digest(key.encode(), self._key) for key in keys])  # noqa: C419 - constant time


class PageCheck:
    """ASGI middleware that refuses web pages, except those of named origins.

    A browser says from which page a request comes (`Origin`). A page whose own name leads to this machine (DNS
    rebinding) is no foreign origin, but its name stands in `Host`.

    Args:
        origins: origins of pages that may ask; "*" for all.
        hosts: names of this machine besides `OWN_NAMES`; None: any name, where a key guards the server.
    """

    def __init__(self, app: ASGIApp, origins: tuple[str, ...], hosts: tuple[str, ...] | None, respond: Respond) -> None:
        self._app = app
        self._origins = origins
        self._hosts = hosts
        self._respond = respond

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = self._refusal(Headers(scope=scope)) if scope["type"] == "http" else None
        await (self._respond(scope["path"], error) if error else self._app)(scope, receive, send)

    def _refusal(self, headers: Headers) -> ApiError | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if host and self._hosts is not None and not is_own_name(host, self._hosts):
            message = f"the request is for the host {host[:80]!r}, which is no known name of this machine"
            message += "; expected localhost or 127.0.0.1, or start the server with --allow-host NAME"
            return ApiError(message, status=403, code="unknown_host")
        if origin is None or {origin, "*"} & {*self._origins} or (host and origin.partition("://")[2] == host):
            return None
        message = f"web pages of {origin[:80]!r} may not ask; to allow them, start the server with --cors ORIGIN"
        return ApiError(message, status=403, code="foreign_origin")


def is_own_name(host: str, names: tuple[str, ...] = ()) -> bool:
    """Return whether a `Host` header names this machine: an address of loopback, `OWN_NAMES`, or one of `names`."""
    parts = HOST.fullmatch(host.lower())
    if not parts:
        return False
    name = (parts["ip6"] or parts["name"] or "").removesuffix(".")
    return name in OWN_NAMES or name.endswith(".localhost") or name in names or is_loopback(name)


def is_loopback(address: str) -> bool:
    """Return whether an IP address is of loopback; False for what is no address."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
        return (getattr(found, "ipv4_mapped", None) or found).is_loopback
    except ValueError:
        return False
