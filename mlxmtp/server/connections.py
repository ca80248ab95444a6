"""Connections are bounded: in number, and in the time without a request."""

from __future__ import annotations

import asyncio
import errno
import resource
import time
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_S = 15.0
"""Seconds that a connection has for the head of a request, from its start or from the end of the answer before."""
MAX_CONNECTIONS = 1000
"""Most connections at a time, where the limit of open files allows as many."""
SPARE_FILES = 200
"""Open files that connections leave to the engine, and to those that are accepted before they are counted."""
BACKLOG = 64
"""Connections that are accepted in one step of the event loop."""
NOTICE_S = 60.0
"""Seconds between two lines of the log about refused connections."""


class Connections:
    """The open connections of a server. One too many closes the one that has waited longest for a request.

    Args:
        log: writes a line.
        limit: the most connections; None: as the limit of open files allows.
    """

    def __init__(self, log: Callable[[str], None], limit: int | None = None) -> None:
        self._log = log
        self._limit = connection_limit() if limit is None else limit
        self._waiting: dict[Connection, asyncio.TimerHandle] = {}  # in the order in which they began to wait
        self._refused = 0
        self._noticed = -NOTICE_S

    def opened(self, connection: Connection) -> None:
        """Count a connection, which waits for its first request."""
        self.wait(connection)
        if len(connection.connections) > self._limit:
            oldest = next(iter(self._waiting))
            self.served(oldest)
            oldest.transport.abort()
            self.refuse(f"there are {self._limit} at a time")

    def wait(self, connection: Connection) -> None:
        """A connection waits for the head of a request; later calls do not prolong its time."""
        if connection not in self._waiting:
            self._start_timer(connection)

    def served(self, connection: Connection) -> None:
        """A connection has sent a request, or is closed."""
        if timer := self._waiting.pop(connection, None):
            timer.cancel()

    def _start_timer(self, connection: Connection) -> None:
        unsent = connection.transport.get_write_buffer_size()
        self._waiting[connection] = connection.loop.call_later(HEAD_S, self._expire, connection, unsent)

    def _expire(self, connection: Connection, unsent: int) -> None:
        """Close a connection that sends no request, unless its client was still reading the answer before."""
        if connection.transport.get_write_buffer_size() < unsent:
            self._start_timer(connection)
        else:
            connection.transport.abort()

    def refuse(self, why: str) -> None:
        """Count a refused connection, and tell about once a minute."""
        self._refused += 1
        if time.monotonic() - self._noticed >= NOTICE_S:
            self._log(f"warning: {self._refused} connections were refused: {why}")
            self._refused, self._noticed = 0, time.monotonic()

    def on_loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """The event loop's handler of exceptions: one in `accept` is a refused connection."""
        error = context.get("exception")
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
            self.refuse(str(error))
        else:
            loop.default_exception_handler(context)


class Connection(H11Protocol):
    """A connection whose time without a request is bounded.

    Args:
        group: all connections of the server.
        options: of uvicorn's protocol.
    """

    def __init__(self, group: Connections, **options: Any) -> None:
        super().__init__(**options)
        self._group = group

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._group.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._group.served(self)
        super().connection_lost(exc)

    def handle_events(self) -> None:
        super().handle_events()
        if not self.transport.is_closing() and self.cycle and not self.cycle.response_complete:
            self._group.served(self)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.transport.is_closing() and self.cycle.response_complete:
            self._group.wait(self)

    def send_400_response(self, msg: str) -> None:
        self._group.refuse("what they sent is no HTTP")
        super().send_400_response(msg)


def connection_limit() -> int:
    """Return the most connections that the limit of open files allows."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    return max(1, min(MAX_CONNECTIONS, max(files - SPARE_FILES, files // 4)))
