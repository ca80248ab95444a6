"""What the statistics panel shows: the state of the engine, of this turn, and of the turns so far."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from statistics import median
from typing import Literal

from mlxmtp.decoding.stats import Stats
from mlxmtp.worker.messages import Comparison, Downloading, Memory, PromptProgress

Status = Literal["starting", "choosing", "loading", "ready", "answering", "stopping", "measuring", "gone"]
BUSY = ("starting", "loading", "answering", "stopping", "measuring")
SILENT_S = 20.0
"""After so long without a word from a busy engine, a restart is offered."""
WINDOW_S = 1.0
KEPT_RATES = 600


@dataclass(frozen=True)
class TurnFigures:
    """One turn in the plots."""

    tps: float
    acceptance: tuple[float, ...]


@dataclass
class Live:
    """Written by chat.py as events come, read by the panel.

    Args:
        clock: seconds; another one in tests.
    """

    clock: Callable[[], float] = time.monotonic
    status: Status = "starting"
    status_since: float = 0.0
    heard: float = 0.0
    stats: Stats | None = None
    memory: Memory | None = None
    prefill: PromptProgress | None = None
    fetching: Downloading | None = None
    compared: Comparison | None = None
    rates: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT_RATES))
    turns: list[TurnFigures] = field(default_factory=list)
    _window: deque[tuple[float, int]] = field(default_factory=deque)

    def become(self, status: Status) -> None:
        self.status = status
        self.status_since = self.heard = self.clock()
        self.fetching = None

    def begin(self) -> None:
        """A turn begins."""
        self.become("answering")
        self.stats = self.prefill = None
        self.rates.clear()
        self._window.clear()

    def said(self, stats: Stats, memory: Memory) -> None:
        """More of the turn has come."""
        now = self.clock()
        self.stats, self.memory, self.prefill = stats, memory, None
        self._window.append((now, stats.tokens))
        while len(self._window) > 2 and now - self._window[1][0] >= WINDOW_S:
            self._window.popleft()
        if rate := self.now_tps:
            self.rates.append(rate)

    def remember(self, turns: Iterable[Stats]) -> None:
        """The turns of a chat that goes on."""
        self.turns = [TurnFigures(stats.decode_tps, stats.acceptance_by_depth) for stats in turns]

    def end(self, stats: Stats | None, memory: Memory | None) -> None:
        """The turn is over."""
        self.become("ready")
        self.prefill = None
        if stats:
            self.stats, self.memory = stats, memory
            self.turns.append(TurnFigures(stats.decode_tps, stats.acceptance_by_depth))

    @property
    def now_tps(self) -> float:
        """Tokens a second over the last second."""
        if len(self._window) < 2:
            return 0.0
        (start, before), (end, after) = self._window[0], self._window[-1]
        return (after - before) / (end - start) if end > start else 0.0

    @property
    def busy(self) -> bool:
        return self.status in BUSY

    @property
    def silent_s(self) -> float:
        """How long a busy engine has said nothing, where that is too long."""
        silence = self.clock() - self.heard
        return silence if self.busy and silence >= SILENT_S else 0.0

    @property
    def plain_tps(self) -> float | None:
        """mlx-lm's plain decoding as `/bench` measured it."""
        measured = self.compared
        return median(measured.plain) if measured and measured.plain and measured.done == measured.total else None

    def speedup(self, stats: Stats | None) -> float | None:
        """A turn's rate to the plain one, once that is measured."""
        plain = self.plain_tps
        return stats.decode_tps / plain if stats and stats.decode_tps and plain else None
