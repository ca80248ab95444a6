"""What the server has done so far, as Prometheus reads it (prometheus.io/docs/instrumenting/exposition_formats)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from mlxmtp.decoding.stats import Stats
from mlxmtp.server.host import Host

PREFIX = "mlxmtp_"


class Metrics:
    """Counts requests and the turns' statistics."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()
        self.turns: Counter[str] = Counter()
        self.drafted: Counter[int] = Counter()
        self.accepted: Counter[int] = Counter()
        self._sums: Counter[str] = Counter()
        self._caches = 0

    def request(self, path: str, status: int) -> None:
        self.requests[path, status] += 1

    def turn(self, reason: str, stats: Stats | None, caches: int | None) -> None:
        """A turn has ended."""
        self.turns[reason] += 1
        self._caches = self._caches if caches is None else caches
        if not stats:
            return
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

    def text(self, host: Host) -> str:
        """The exposition, its figures as of now."""
        return "\n".join(self._lines(host)) + "\n"

    def _lines(self, host: Host) -> Iterator[str]:
        sums = self._sums
        yield from _metric("up", "gauge", "whether a model is loaded", {"": int(host.ready)})
        yield from _metric("queue_waiting", "gauge", "requests that wait", {"": host.queue.waiting})
        yield from _metric("queue_running", "gauge", "requests that the engine works on", {"": host.queue.running})
        yield from _metric("engine_restarts_total", "counter", "engines that had to be replaced", {"": host.restarts})
        requests = {f'path="{path}",status="{status}"': n for (path, status), n in sorted(self.requests.items())}
        yield from _metric("requests_total", "counter", "requests by path and status", requests)
        ends = {f'reason="{reason}"': n for reason, n in sorted(self.turns.items())}
        yield from _metric("turns_total", "counter", "generated turns by how they ended", ends)
        for name, told in (
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
            yield from _metric(f"{name}_total", "counter", told, {"": sums[name]})
        yield from _metric("cache_bytes", "gauge", "bytes of the prefix cache", {"": self._caches})
        per_round = sums["tokens"] / sums["rounds"] if sums["rounds"] else 0
        yield from _metric("tokens_per_round", "gauge", "generated tokens a verification pass", {"": per_round})
        drafted = {f'depth="{depth}"': n for depth, n in sorted(self.drafted.items())}
        yield from _metric("drafted_total", "counter", "drafts of the head, by depth", drafted)
        accepted = {f'depth="{depth}"': self.accepted[depth] for depth in sorted(self.drafted)}
        yield from _metric("accepted_total", "counter", "of those, drafts that stood, by depth", accepted)
        shares = {f'depth="{d}"': self.accepted[d] / n for d, n in sorted(self.drafted.items()) if n}
        yield from _metric("acceptance", "gauge", "share of the drafts that stood, by depth", shares)


def _metric(name: str, kind: str, told: str, values: Mapping[str, float]) -> Iterator[str]:
    yield f"# HELP {PREFIX}{name} {told}"
    yield f"# TYPE {PREFIX}{name} {kind}"
    for labels, value in values.items():
        place = f"{{{labels}}}" if labels else ""
        yield f"{PREFIX}{name}{place} {value}"
