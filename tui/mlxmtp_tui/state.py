"""What the statistics panel shows: the state of the engine, of the present turn, and the turns so far."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from statistics import median
from typing import Literal

from mlxmtp.decoding.stats import Stats
from mlxmtp.worker.messages import CheckProgress, Comparison, Downloading, Memory, PromptProgress

Status = Literal["starting", "choosing", "loading", "ready", "answering", "stopping", "measuring", "gone"]
BUSY = ("starting", "loading", "answering", "stopping", "measuring")
SILENT_S = 20.0
"""Seconds without an event of a busy engine after which a restart is offered."""
WINDOW_S = 1.0
"""Seconds that the current rate is measured over."""
KEPT_RATES = 600
"""Rates of a turn that are kept for the sparkline."""


@dataclass(frozen=True)
class PlottedTurn:
    """A turn in the plots: tokens a second, and the share of drafts accepted at each depth."""

    tps: float
    acceptance: tuple[float, ...]


@dataclass
class ChatState:
    """Written by `Chat` as events come, read by the panel.

    Args:
        clock: seconds, monotonic.
    """

    clock: Callable[[], float] = time.monotonic
    status: Status = "starting"
    status_since: float = field(init=False)
    last_event_at: float = field(init=False)
    stats: Stats | None = None
    memory: Memory | None = None
    prompt_progress: PromptProgress | None = None
    download: Downloading | None = None
    check: CheckProgress | None = None
    comparison: Comparison | None = None
    rates: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT_RATES))
    turns: list[PlottedTurn] = field(default_factory=list)
    _window: deque[tuple[float, int]] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.status_since = self.last_event_at = self.clock()  # not 0: the clock may count from the machine's start

    def set_status(self, status: Status) -> None:
        self.status = status
        self.status_since = self.last_event_at = self.clock()
        self.download = self.check = None

    def begin_turn(self) -> None:
        self.set_status("answering")
        self.stats = self.prompt_progress = None
        self.rates.clear()
        self._window.clear()

    def add_delta(self, stats: Stats, memory: Memory) -> None:
        """Take in the statistics of the turn so far."""
        now = self.clock()
        self.stats, self.memory, self.prompt_progress = stats, memory, None
        self._window.append((now, stats.tokens))
        while len(self._window) > 2 and now - self._window[1][0] >= WINDOW_S:
            self._window.popleft()
        if rate := self.current_tps:
            self.rates.append(rate)

    def note_progress(self, event: PromptProgress | Downloading | CheckProgress) -> None:
        """Show how far the present work is."""
        match event:
            case PromptProgress():
                self.prompt_progress = event
            case Downloading():
                self.download = event
            case CheckProgress():
                self.check = event

    def set_turns(self, turns: Iterable[Stats]) -> None:
        """Plot the turns of another chat."""
        self.turns = [PlottedTurn(stats.decode_tps, stats.acceptance_by_depth) for stats in turns]

    def end_turn(self, stats: Stats | None, memory: Memory | None) -> None:
        """End the turn or the measurement; without statistics it is not plotted."""
        self.set_status("ready")
        self.prompt_progress = None
        if stats:
            self.stats, self.memory = stats, memory
            self.turns.append(PlottedTurn(stats.decode_tps, stats.acceptance_by_depth))

    @property
    def current_tps(self) -> float:
        """Tokens a second over the last `WINDOW_S` seconds."""
        if len(self._window) < 2:
            return 0.0
        (start, before), (end, after) = self._window[0], self._window[-1]
        return (after - before) / (end - start) if end > start else 0.0

    @property
    def busy(self) -> bool:
        return self.status in BUSY

    @property
    def silence_s(self) -> float:
        """Seconds that a busy engine has sent no event, from `SILENT_S` on; else 0."""
        silence = self.clock() - self.last_event_at
        return silence if self.busy and silence >= SILENT_S else 0.0

    @property
    def plain_tps(self) -> float | None:
        """Median rate of mlx-lm's plain decoding, as `/bench` measured it."""
        measured = self.comparison
        return median(measured.plain) if measured and measured.plain and measured.done == measured.total else None

    def speedup(self, stats: Stats | None) -> float | None:
        """Ratio of a turn's rate to the plain rate, once that is measured."""
        plain = self.plain_tps
        return stats.decode_tps / plain if stats and stats.decode_tps and plain else None
