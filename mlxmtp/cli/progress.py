"""Progress of long work on standard error: one line in place on a terminal, else a line every few seconds."""

import shutil
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self, TextIO

from mlxmtp.terminal import visible
from mlxmtp.units import size

PATIENCE_S = 1.0
"""Seconds before anything is shown. Shorter work shows nothing."""
PAUSE_S = 10.0
"""Least seconds between two lines where the output is not a terminal."""
ERASE_LINE = "\r\x1b[K"


class Progress:
    """Shows how much of the work is done, after `PATIENCE_S` and until `close`.

    A timer shows the first line, because a single step of the work can take much longer than `PATIENCE_S`.

    Args:
        out: stream that is written to.
        activity: what is being done, as the beginning of the line.
        amount: returns the words for `done` and `total`.
    """

    def __init__(self, out: TextIO, activity: str, amount: Callable[[int, int], str]) -> None:
        self._out = out
        self._activity = activity
        self._amount = amount
        self._in_place = out.isatty()
        self._lock = threading.Lock()
        self._timer = threading.Timer(PATIENCE_S, self._show)
        self._timer.daemon = True
        self._done: tuple[int, int] | None = None
        self._shown_at: float | None = None
        self._closed = False

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def update(self, done: int, total: int) -> None:
        """Report that `done` of `total` are done."""
        self._done = (done, total)
        if self._shown_at is None:
            return  # the timer shows the first line
        if self._in_place or time.monotonic() - self._shown_at >= PAUSE_S:
            self._show()

    def close(self) -> None:
        """Stop, and erase the line on a terminal."""
        self._timer.cancel()
        with self._lock:
            if self._in_place and self._shown_at is not None and not self._closed:
                self._write(ERASE_LINE)
            self._closed = True

    def _show(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._shown_at = time.monotonic()
            line = f"{self._activity} ..."
            if self._done is not None:
                done, total = self._done
                line = f"{self._activity}: {self._amount(done, total)} ({done / max(1, total):.0%})"
            width = shutil.get_terminal_size().columns - 1  # ERASE_LINE does not erase a wrapped line
            line = visible(line)
            self._write(ERASE_LINE + line[:width] if self._in_place else line + "\n")

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()


class PrefillProgress(Progress):
    """Shows how many tokens of a prompt are prefilled."""

    def __init__(self, out: TextIO) -> None:
        super().__init__(out, "Reading the prompt", lambda done, total: f"{done} of {total} tokens")


class LoadProgress(Progress):
    """Shows how many passes of the exactness probe are done; nothing where the verdict was kept."""

    def __init__(self, out: TextIO) -> None:
        super().__init__(out, "Checking exactness", lambda done, total: f"{done} of {total} passes")

    def __enter__(self) -> Self:
        return self

    def update(self, done: int, total: int) -> None:
        """Report that `done` of `total` passes are done; the first starts the timer."""
        first = self._done is None
        super().update(done, total)
        if first:
            self._timer.start()


class ByteProgress(Progress):
    """Shows how many bytes are copied."""

    def __init__(self, out: TextIO, activity: str) -> None:
        super().__init__(out, activity, lambda done, total: f"{size(done)} of {size(total)}")
