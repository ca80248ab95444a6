"""What is recorded of requests: a line on standard error for each, and the counters of /metrics."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlxmtp.decoding.stats import Stats
from mlxmtp.server.host import Host
from mlxmtp.server.turn import TurnEnd

METRICS_PREFIX = "mlxmtp_"
UNLOGGED_PATHS = ("/health", "/metrics")
"""Paths that monitoring polls. They are neither logged nor counted."""
RECORDED = "mlxmtp.recorded"
"""Key in the scope of a request that has a `RequestRecord`; `RequestLog` leaves it alone."""
CLIENT_DISCONNECTED = 499
"""Status of a request whose client has left, as in nginx."""


class Log:
    """Writes lines to standard error."""

    def line(self, text: str) -> None:
        """Write a line. A closed standard error does not matter."""
        # a client's text must not control the terminal
        printable = "".join(c if c.isprintable() else " " for c in text)
        with suppress(OSError):
            print(f"{time.strftime('%H:%M:%S')} {printable}", file=sys.stderr, flush=True)  # noqa: T201 - the log

    def request(
        self, what: str, status: int, seconds: float, *, agent: str = "", end: TurnEnd | None = None, note: str = ""
    ) -> None:
        """Write the line of a request.

        Args:
            what: method and path.
            seconds: from the request to the end of the answer.
            agent: the client's user-agent.
            end: the end of its turn.
            note: an error, or what was dropped from the body.
        """
        parts = [f"{what} {status}", agent.split(" ")[0][:40]]
        if end and end.stats:
            stats = end.stats
            cached = f" ({stats.reused_tokens:,} cached)" if stats.reused_tokens else ""
            parts += [f"{stats.prompt_tokens:,}{cached} + {stats.tokens:,} tok", f"ttft {stats.ttft_s:.2f} s"]
            parts += [f"{stats.decode_tps:.1f} tok/s"] if stats.decode_tps else []
            parts += [f"{stats.tokens_per_round:.2f} tok/round"] if stats.tokens > stats.rounds else []
            most = len(stats.tokens_by_sequences)
            parts += [f"beside {most - 1} other{'s' if most > 2 else ''}"] if most > 1 else []
        parts += [end.reason if end else "", f"{seconds:.2f} s", note]
        self.line(" · ".join(part for part in parts if part))


class Metrics:
    """Counts requests and sums up the statistics of turns, for Prometheus.

    The format is version 0.0.4 of prometheus.io/docs/instrumenting/exposition_formats.
    """

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()
        self.turns: Counter[str] = Counter()
        self.drafted: Counter[int] = Counter()
        self.accepted: Counter[int] = Counter()
        self.tokens_by_turns: Counter[int] = Counter()
        self._sums: Counter[str] = Counter()
        self._longest_ttft_s = self._longest_pause_s = 0.0
        self._cache_bytes = 0

    def request(self, path: str, status: int) -> None:
        """Count a request."""
        self.requests[path, status] += 1

    def turn(self, end: TurnEnd) -> None:
        """Add a turn that has ended."""
        self.turns[end.reason] += 1
        self._cache_bytes = self._cache_bytes if end.cache_bytes is None else end.cache_bytes
        if end.stats:
            self._add(end.stats)

    def text(self, host: Host) -> str:
        """The exposition."""
        return "\n".join(self._lines(host)) + "\n"

    def _add(self, stats: Stats) -> None:
        self._sums["prompt_tokens"] += stats.prompt_tokens
        self._sums["cached_tokens"] += stats.reused_tokens
        self._sums["cache_hits"] += stats.reused_tokens > 0
        self._sums["tokens"] += stats.tokens
        self._sums["rounds"] += stats.rounds
        self._sums["looked_up"] += stats.looked_up
        self._sums["looked_up_accepted"] += stats.looked_up_accepted
        self._sums["ttft_seconds"] += stats.ttft_s  # type: ignore[assignment]
        self._sums["decode_seconds"] += stats.draft_s + stats.verify_s + stats.other_s  # type: ignore[assignment]
        self.drafted.update(dict(enumerate(stats.drafted_by_depth, start=1)))
        self.accepted.update(dict(enumerate(stats.accepted_by_depth, start=1)))
        self.tokens_by_turns.update(dict(enumerate(stats.tokens_by_sequences, start=1)))
        self._longest_ttft_s = max(self._longest_ttft_s, stats.ttft_s)
        self._longest_pause_s = max(self._longest_pause_s, stats.longest_pause_s)

    def _lines(self, host: Host) -> Iterator[str]:
        sums = self._sums
        yield from _metric("up", "gauge", "whether a model is loaded", {"": int(host.ready)})
        yield from _metric("queue_waiting", "gauge", "requests that wait", {"": host.queue.waiting})
        yield from _metric("queue_running", "gauge", "requests that the engine works on", {"": host.queue.running})
        places, why = host.queue.places, host.loaded and host.loaded.apart_because
        yield from _metric("parallel", "gauge", "requests that the engine can work on at once", {"": places})
        apart = {f'reason="{_escaped(why)}"': 1} if why else {}
        yield from _metric("turns_apart", "gauge", "why requests at once do not share passes", apart)
        yield from _metric("engine_restarts_total", "counter", "engines that had to be replaced", {"": host.restarts})
        requests = {f'path="{path}",status="{status}"': n for (path, status), n in sorted(self.requests.items())}
        yield from _metric("requests_total", "counter", "requests by path and status", requests)
        reasons = {f'reason="{reason}"': n for reason, n in sorted(self.turns.items())}
        yield from _metric("turns_total", "counter", "generated turns by how they ended", reasons)
        for name, help_text in (
            ("prompt_tokens", "tokens of prompts"),
            ("cached_tokens", "of those, read from the prefix cache"),
            ("cache_hits", "turns that found a prefix in the cache"),
            ("tokens", "generated tokens"),
            ("rounds", "verification passes"),
            ("looked_up", "drafts looked up in the text so far"),
            ("looked_up_accepted", "of those, drafts that stood"),
            ("ttft_seconds", "seconds to the first token, summed"),
            ("decode_seconds", "seconds of decoding, summed"),
        ):
            yield from _metric(f"{name}_total", "counter", help_text, {"": sums[name]})
        by_turns = {f'turns="{n}"': self.tokens_by_turns[n] for n in sorted(self.tokens_by_turns)}
        yield from _metric("tokens_by_turns_total", "counter", "generated tokens by turns that shared a pass", by_turns)
        longest = "longest wait for a first token", {"": self._longest_ttft_s}
        yield from _metric("longest_ttft_seconds", "gauge", *longest)
        longest = "longest pause between two rounds of a turn", {"": self._longest_pause_s}
        yield from _metric("longest_pause_seconds", "gauge", *longest)
        yield from _metric("cache_bytes", "gauge", "bytes of the prefix cache", {"": self._cache_bytes})
        per_round = sums["tokens"] / sums["rounds"] if sums["rounds"] else 0
        yield from _metric("tokens_per_round", "gauge", "generated tokens a verification pass", {"": per_round})
        drafted = {f'depth="{depth}"': n for depth, n in sorted(self.drafted.items())}
        yield from _metric("drafted_total", "counter", "drafts of the head, by depth", drafted)
        accepted = {f'depth="{depth}"': self.accepted[depth] for depth in sorted(self.drafted)}
        yield from _metric("accepted_total", "counter", "of those, drafts that stood, by depth", accepted)
        shares = {f'depth="{d}"': self.accepted[d] / n for d, n in sorted(self.drafted.items()) if n}
        yield from _metric("acceptance", "gauge", "share of the drafts that stood, by depth", shares)


class RequestRecord:
    """Logs and counts one request, once.

    Args:
        request: the request, as it arrives.
        log, metrics: where it is recorded.
    """

    def __init__(self, request: Request, log: Log, metrics: Metrics) -> None:
        self.dropped: tuple[str, ...] = ()
        """What the server ignores of the body."""
        self._request = request
        self._log = log
        self._metrics = metrics
        self._started = time.perf_counter()
        self._ended = False
        request.scope[RECORDED] = True

    def end(self, status: int, turn_end: TurnEnd | None = None, error: str = "") -> None:
        """Record the end of the request; later calls do nothing."""
        if self._ended:
            return
        self._ended = True
        request = self._request
        self._metrics.request(request.url.path, status)
        if turn_end:
            self._metrics.turn(turn_end)
        dropped = f"dropped: {', '.join(self.dropped)}" if self.dropped else ""
        self._log.request(
            f"{request.method} {request.url.path}",
            status,
            time.perf_counter() - self._started,
            agent=request.headers.get("user-agent", ""),
            end=turn_end,
            note="; ".join(filter(None, (error, dropped))),
        )


class RequestLog:
    """ASGI middleware, the outermost: logs and counts the requests without a `RequestRecord`, such as refused ones.

    Args:
        known_paths: paths that are counted by name, with all paths below them; others are counted as "other".
    """

    def __init__(self, app: ASGIApp, log: Log, metrics: Metrics, known_paths: tuple[str, ...]) -> None:
        self._app = app
        self._log = log
        self._metrics = metrics
        self._known_paths = known_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in UNLOGGED_PATHS:
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500

        async def send_and_note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_and_note_status)
        finally:
            if RECORDED not in scope:
                path = scope["path"]
                self._metrics.request(self._counted_path(path) if status != 404 else "other", status)
                agent = Headers(scope=scope).get("user-agent", "")
                self._log.request(f"{scope['method']} {path}", status, time.perf_counter() - started, agent=agent)

    def _counted_path(self, path: str) -> str:
        matches = (known for known in self._known_paths if path == known or path.startswith(f"{known}/"))
        return next(matches, "other")


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _metric(name: str, kind: str, help_text: str, values: Mapping[str, float]) -> Iterator[str]:
    yield f"# HELP {METRICS_PREFIX}{name} {help_text}"
    yield f"# TYPE {METRICS_PREFIX}{name} {kind}"
    for labels, value in values.items():
        suffix = f"{{{labels}}}" if labels else ""
        yield f"{METRICS_PREFIX}{name}{suffix} {value}"
