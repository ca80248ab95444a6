"""Several turns of one engine at once: prompts are read in chunks between rounds, and rounds are shared."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import mlx.core as mx

from mlxmtp.decoding.loop import Outcome, RoundLoop
from mlxmtp.decoding.turn import Turn
from mlxmtp.engine.generate import Chunk, TextTurn
from mlxmtp.errors import is_out_of_memory
from mlxmtp.prefixes import common_length

Key = Hashable
ROUND_SHARE = 0.25
"""Time for rounds of running turns while prompts are read, in parts of the time for chunks."""
SLICE = 8
"""Rounds of a turn before the next one's, where turns do not share passes."""
SHARED_PREFIX = 512
"""Tokens that a prompt has in common with one that is being read from which on it waits for them."""
RESERVED_TOKENS = 1024
"""Tokens of an answer that a turn is expected to need at most, when it is admitted beside others."""


@dataclass(frozen=True)
class ChunkRead:
    """A part of a turn's prompt has been read: `done` of `total` tokens."""

    done: int
    total: int


@dataclass(frozen=True)
class Deferred:
    """A turn waits until the caches of others leave it room: it is expected to need so many bytes, and has `free`."""

    nbytes: int
    free: int


Event = ChunkRead | Deferred | Chunk | Exception
"""What a step was for a turn. An exception, or a chunk with a finish reason, is its last."""


class Scheduler:
    """Runs turns of one engine, `parallel` at once; others wait in the order in which they came.

    `step` reads one chunk of one prompt, or runs one round. A chunk gives running turns the right to rounds of
    `ROUND_SHARE` of its time. The next round runs when its own time is covered: prompts take at most that much longer
    than alone, and a running turn pauses for a chunk and some rounds' time at most. Prompts take turns chunk by chunk.
    A prompt that has its beginning in common with one that is being read waits for that, and takes it over.

    A turn is admitted beside others if the caches of all are expected to fit into `max_bytes`; one alone always is.

    Args:
        loop: runs the rounds of all turns.
        together: how many of the running turns share the next pass; the rest take turns.
        on_round: is told what a round was for its turns.
        max_bytes: bound of the bytes of the turns' caches.

    Attributes:
        longest_pause: seconds between two rounds of running turns, the most so far.
    """

    def __init__(
        self,
        loop: RoundLoop,
        parallel: int,
        *,
        together: Callable[[Sequence[Turn]], int] = len,
        on_round: Callable[[Mapping[Turn, Outcome]], None] = lambda _: None,
        max_bytes: int = 2**63 - 1,
    ) -> None:
        self.parallel = parallel
        self.longest_pause = 0.0
        self._together, self._on_round, self._max_bytes = together, on_round, max_bytes
        self._loop = loop
        self._waiting: dict[Key, TextTurn] = {}
        self._deferred: set[Key] = set()
        self._reading: dict[Key, TextTurn] = {}
        self._running: dict[Key, TextTurn] = {}
        self._owed = 0.0  # seconds of rounds that chunks have given the right to
        self._last_round = 0.0  # seconds
        self._round_end = time.perf_counter()
        self._rounds = 0  # of the present group of turns that do not share passes with others

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not (self._waiting or self._reading or self._running)

    @property
    def active(self) -> list[Key]:
        """Turns that have a place."""
        return [*self._reading, *self._running]

    @property
    def waiting(self) -> list[Key]:
        """Turns that wait for a place, or for memory."""
        return [*self._waiting]

    def add(self, key: Key, turn: TextTurn) -> None:
        """Take in a turn."""
        if self.idle:
            mx.reset_peak_memory()
            self._loop.begin()
            self._round_end = time.perf_counter()
        self._waiting[key] = turn

    def cancel(self, key: Key) -> None:
        """End a turn between two steps; its caches are kept. One that has ended is ignored."""
        self._deferred.discard(key)
        for turns in (self._waiting, self._reading, self._running):
            if turn := turns.pop(key, None):
                turn.close()

    def run(self, turns: Sequence[TextTurn]) -> list[list[Chunk]]:
        """Run turns to their ends; return the chunks of each. The first error of a turn is raised."""
        chunks: dict[Key, list[Chunk]] = {i: [] for i in range(len(turns))}
        for i, turn in enumerate(turns):
            self.add(i, turn)
        while not self.idle:
            for key, event in self.step():
                if isinstance(event, Exception):
                    raise event
                if isinstance(event, Chunk):
                    chunks[key].append(event)
        return [*chunks.values()]

    def close(self) -> None:
        """End all turns."""
        for key in (*self._waiting, *self._reading, *self._running):
            self.cancel(key)

    def step(self) -> list[tuple[Key, Event]]:
        """Read one chunk of a prompt or run one round; return what it was for each turn that took part."""
        events = self._admit()
        if self._reading and not (self._running and self._owed >= self._last_round):
            return events + self._read(self._next_to_read())
        return events + (self._round() if self._running else [])

    def _admit(self) -> list[tuple[Key, Event]]:
        """Give places to waiting turns; the first for which there is no room makes all others wait too."""
        events: list[tuple[Key, Event]] = []
        while self._waiting and len(self.active) < self.parallel:
            key, turn = next(iter(self._waiting.items()))
            others = [*self._reading.values(), *self._running.values()]
            if others:
                model = max(others, key=lambda other: other.tokens_held)
                if not model.tokens_held:
                    break  # nothing shows yet what a token costs
                free = self._max_bytes - sum(other.expected_bytes(model, RESERVED_TOKENS) for other in others)
                needed = turn.expected_bytes(model, RESERVED_TOKENS)
                if needed > free:
                    if key not in self._deferred:
                        self._deferred.add(key)
                        events.append((key, Deferred(needed, max(free, 0))))
                    break
            self._deferred.discard(key)
            self._reading[key] = self._waiting.pop(key)
        return events

    def _next_to_read(self) -> Key:
        """The next prompt in turn; one that has not begun waits for another that reads what both begin with."""
        for key, turn in self._reading.items():
            if turn.tokens_held or not any(
                other.tokens_held < common_length(other.prompt, turn.prompt) >= SHARED_PREFIX
                for other in self._reading.values()
                if other.tokens_held
            ):
                return key
        return next(iter(self._reading))

    def _read(self, key: Key) -> list[tuple[Key, Event]]:
        """Read the next chunk of a prompt, which is then the last in turn."""
        started, turn = time.perf_counter(), self._reading.pop(key)
        try:
            progress = turn.read_chunk()
        except Exception as error:  # of this turn alone
            turn.close()
            return [(key, error)]
        finally:
            now = time.perf_counter()
            if self._running:
                self._owed += ROUND_SHARE * (now - started)
            else:
                self._round_end = now  # nobody pauses
            self._loop.resume()
        (self._reading if turn.reading else self._running)[key] = turn
        return [(key, ChunkRead(*progress))] if progress else []

    def _round(self) -> list[tuple[Key, Event]]:
        """Run a round of the running turns, or of a group of them, which changes every `SLICE` rounds."""
        keys = list(self._running)
        group = keys[: self._together([turn.turn for turn in self._running.values()])]
        apart = len(group) < len(keys)
        self._rounds = self._rounds % SLICE + 1
        ends = apart and self._rounds == SLICE
        turns = {self._running[key].turn: key for key in group}
        started = time.perf_counter()
        try:
            outcomes = self._loop.round([*turns], ahead=not (self._reading or ends))
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            return self._make_room(error)
        now = time.perf_counter()
        self.longest_pause = max(self.longest_pause, started - self._round_end)
        self._last_round, self._round_end = now - started, now
        self._owed = max(self._owed - self._last_round, 0.0) if self._reading else 0.0
        self._on_round(outcomes)
        events = [self._taken(turns[turn], outcome) for turn, outcome in outcomes.items()]
        if ends:
            for key in group:
                if key in self._running:
                    self._running[key] = self._running.pop(key)
        return events

    def _taken(self, key: Key, outcome: Outcome) -> tuple[Key, Event]:
        turn = self._running[key]
        event: Event
        try:
            event = turn.take(outcome)
        except Exception as error:  # of this turn alone
            event = error
        if turn.finish or isinstance(event, Exception):
            del self._running[key]
            turn.close()
        return key, event

    def _make_room(self, error: Exception) -> list[tuple[Key, Event]]:
        """End the turn with the most bytes; the others read their tokens again: the pass has spoiled all caches."""
        largest = max(self._running, key=lambda key: self._running[key].nbytes)
        self._running.pop(largest).fail()
        for turn in self._running.values():
            turn.restart()
        self._reading |= self._running
        self._running.clear()
        mx.clear_cache()
        return [(largest, error)]
