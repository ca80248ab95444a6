"""A line for each request, on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import suppress

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlxmtp.decoding.stats import Stats

QUIET = ("/health", "/metrics")
"""What is asked all the time, by programs that watch."""
WATCHED = "mlxmtp.watched"
"""The key of a request's scope that says that something else accounts for it."""


class Log:
    """Writes lines; a reader that has gone away does not matter."""

    def line(self, text: str) -> None:
        shown = "".join(c if c.isprintable() else " " for c in text)  # of what clients send, nothing steers a terminal
        with suppress(OSError):
            print(f"{time.strftime('%H:%M:%S')} {shown}", file=sys.stderr, flush=True)  # noqa: T201 - the log

    def request(
        self,
        what: str,
        status: int,
        seconds: float,
        *,
        agent: str = "",
        stats: Stats | None = None,
        reason: str = "",
        said: str = "",
    ) -> None:
        """A request has been answered, or not.

        Args:
            what: method and path. agent: the client's name. reason: how the turn ended. said: an error or a remark.
        """
        parts = [f"{what} {status}", agent.split(" ")[0][:40]]
        if stats:
            cached = f" ({stats.reused_tokens:,} cached)" if stats.reused_tokens else ""
            parts += [f"{stats.prompt_tokens:,}{cached} + {stats.tokens:,} tok", f"ttft {stats.ttft_s:.2f} s"]
            parts += [f"{stats.decode_tps:.1f} tok/s"] if stats.decode_tps else []
            parts += [f"{stats.tokens_per_round:.2f} tok/round"] if stats.tokens > stats.rounds else []
        parts += [reason, f"{seconds:.2f} s", said]
        self.line(" · ".join(part for part in parts if part))


class RequestLog:
    """Accounts for the requests that nothing else does: pages, refusals, what is not there. The outermost layer.

    Args:
        count: told the path and the status of each. known: the paths that are counted by name, with all below them.
    """

    def __init__(self, app: ASGIApp, log: Log, count: Callable[[str, int], None], known: tuple[str, ...]) -> None:
        self._app = app
        self._log = log
        self._count = count
        self._known = known

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in QUIET:
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, sending)
        finally:
            if WATCHED not in scope:
                path = scope["path"]
                named = (one for one in self._known if path == one or path.startswith(f"{one}/"))
                self._count(next(named, "other") if status != 404 else "other", status)
                agent = Headers(scope=scope).get("user-agent", "")
                self._log.request(f"{scope['method']} {path}", status, time.perf_counter() - started, agent=agent)
