"""The turns that the worker runs at once: what each has generated, what of it is sent, how each ends."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

from mlxmtp.decoding.stats import Stats
from mlxmtp.engine.engine import Engine
from mlxmtp.engine.generate import Chunk
from mlxmtp.engine.output import Segment
from mlxmtp.engine.prefix_cache import PrefixCache
from mlxmtp.engine.scheduler import Deferred, Key
from mlxmtp.units import size
from mlxmtp.worker.failures import failure
from mlxmtp.worker.messages import (
    EMPTY_MESSAGE,
    MIN_INTERVAL_S,
    Command,
    Event,
    Failed,
    Finished,
    Generate,
    Memory,
    PromptProgress,
    TurnDelta,
    Warned,
)

AUTO_PARALLEL = 4
"""Turns that run at once where no number is given: coding agents send two to four requests at once."""


def places(engine: Engine, wanted: int | None) -> tuple[int, str | None]:
    """Return how many turns run at once, and why they do not share passes; None: they do, or only one is wanted.

    Args:
        wanted: None: one where turns cannot share passes, else `AUTO_PARALLEL`.
    """
    if wanted == 1:
        return 1, None
    return wanted or (1 if engine.why_apart else AUTO_PARALLEL), engine.why_apart


@dataclass
class _Turn:
    """A turn, and what of it is sent.

    Args:
        segments: of the whole turn. sent: the number of them that were sent.
        logprobs, rounds: those that were not sent.
        stats: None before the first round.
        delta: the newest round was not sent. sent_at: clock at the newest delta.
    """

    command: Generate
    segments: list[Segment] = field(default_factory=list)
    sent: int = 0
    logprobs: list[Any] = field(default_factory=list)
    rounds: list[Any] = field(default_factory=list)
    stats: Stats | None = None
    delta: bool = False
    sent_at: float = 0.0


class Turns:
    """Runs several `Generate` commands at once. One turn's failure ends no other.

    Args:
        parallel: the most turns that run at once; more have to wait.
        stops: whether a command has to end.
        emit: sends an event.
    """

    def __init__(
        self,
        engine: Engine,
        prefix_cache: PrefixCache,
        parallel: int,
        stops: Callable[[Command], bool],
        emit: Callable[[Event], None],
    ) -> None:
        self._engine = engine
        self._scheduler = engine.scheduler(parallel, prefix_cache)
        self._parallel = parallel
        self._prefix_cache = prefix_cache
        self._stops = stops
        self._emit = emit
        self._turns: dict[Key, _Turn] = {}

    def __len__(self) -> int:
        return len(self._turns)

    @property
    def full(self) -> bool:
        """Whether another turn has to wait."""
        return len(self._turns) >= self._parallel

    def begin(self, command: Generate) -> None:
        """Begin a turn; `step` continues it. Raises what `Engine.open_turn` raises."""
        turn = self._engine.open_turn(
            command.messages,
            command.settings,
            raw=command.raw,
            boundaries=command.boundaries,
            opening=command.opening,
            conversation=not command.raw,
            prefix_cache=self._prefix_cache,
        )
        self._scheduler.add(command.id, turn)
        self._turns[command.id] = _Turn(command)

    def step(self) -> None:
        """Continue the turns by a round, or by a chunk of a prompt; end those that have to stop."""
        events = self._scheduler.step()
        stopped = {id: turn for id, turn in self._turns.items() if self._stops(turn.command)}
        for id, event in events:
            turn = self._turns[id]
            if isinstance(event, Exception):
                self._fail(turn, event)
            elif isinstance(event, Chunk):
                self._add(turn, event)
            elif isinstance(event, Deferred):
                room = f"expected to need {size(event.nbytes)}, and others leave {size(event.free)}"
                self._emit(Warned(0, f"a request waits for memory: its caches are {room}"))
            elif id not in stopped:
                self._emit(PromptProgress(turn.command.id, event.done, event.total))
        for id, turn in stopped.items():
            if id in self._turns:
                self._scheduler.cancel(id)
                self._end(turn, "interrupted")

    def _add(self, turn: _Turn, chunk: Chunk) -> None:
        turn.segments += chunk.segments
        turn.logprobs += [[entry.token, entry.logprob, entry.top] for entry in chunk.logprobs]
        if turn.command.trace:
            trace = chunk.trace
            texts = [[part.kind, part.text, part.depth] for part in trace.texts]
            turn.rounds.append([trace.drafted, trace.accepted, trace.from_lookup, texts])
        turn.stats, turn.delta = chunk.stats, True
        if chunk.stats.rounds == 1 or time.perf_counter() - turn.sent_at >= MIN_INTERVAL_S:  # the first at once
            self._send(turn)
        if chunk.finish_reason:
            self._end(turn, chunk.finish_reason, chunk.stopped_by)

    def _send(self, turn: _Turn) -> None:
        """Send what was generated since the last delta."""
        assert turn.stats
        new = [[segment.kind, segment.text] for segment in turn.segments[turn.sent :]]
        self._emit(TurnDelta(turn.command.id, new, turn.stats, self._memory(), turn.logprobs, turn.rounds))
        turn.logprobs, turn.rounds = [], []
        turn.sent, turn.delta, turn.sent_at = len(turn.segments), False, time.perf_counter()

    def _end(self, turn: _Turn, reason: str, stopped_by: str | None = None) -> None:
        id = turn.command.id
        del self._turns[id]
        if turn.delta:
            self._send(turn)
        if turn.stats:
            message = self._engine.assistant_message(turn.segments)
            self._emit(Finished(id, reason, message, turn.stats, self._memory(), stopped_by))
        else:
            self._emit(Finished(id, reason, EMPTY_MESSAGE))
        if warning := self._engine.fit.warning():
            self._emit(Warned(0, warning))

    def _fail(self, turn: _Turn, error: Exception) -> None:
        """End a turn that has failed. Of an accident the other turns of the process shall not know."""
        id = turn.command.id
        del self._turns[id]
        failed = failure(id, error)
        if failed is None and self._turns:
            traceback.print_exception(error)
            failed = Failed(id, "failed", f"{error!r}; this should not be, please report it")
        if failed is None or (failed.kind == "memory" and self._engine.ranks):
            raise error  # other ranks would keep their prefix caches: all start again
        if failed.kind == "memory":
            self._prefix_cache.clear()
        self._emit(failed)

    def _memory(self) -> Memory:
        return Memory(mx.get_active_memory(), mx.get_peak_memory(), self._prefix_cache.nbytes)
