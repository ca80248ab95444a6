"""The progress of long work on standard error: in place on a terminal, otherwise a line now and then."""

import shutil
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self, TextIO

from mlxmtp.units import size

PATIENCE_S = 1.0
"""Nothing is shown for work shorter than this."""
PAUSE_S = 10.0
"""The least time between two lines where the display is not a terminal."""
ERASE_LINE = "\r\x1b[K"


class Progress:
    """Shows how much has been done, from the first second until `close`.

    A thread of its own notices that the second is over: one step of the work can take much longer.

    Args:
        doing: what is being done. amount: how `done` and `total` read together.
    """

    def __init__(self, out: TextIO, doing: str, amount: Callable[[int, int], str]) -> None:
        self._out = out
        self._doing = doing
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
        """`done` of `total` are behind us."""
        self._done = (done, total)
        if self._shown_at is None:
            return  # the timer has not run out
        if self._in_place or time.monotonic() - self._shown_at >= PAUSE_S:
            self._show()

    def close(self) -> None:
        """Stop, and leave a terminal's line as it was."""
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
            line = f"{self._doing} ..."
            if self._done is not None:
                done, total = self._done
                line = f"{self._doing}: {self._amount(done, total)} ({done / max(1, total):.0%})"
            width = shutil.get_terminal_size().columns - 1  # a line that wraps would not be erased
            self._write(ERASE_LINE + line[:width] if self._in_place else line + "\n")

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()


class PrefillProgress(Progress):
    """How much of a prompt has been read."""

    def __init__(self, out: TextIO) -> None:
        super().__init__(out, "Reading the prompt", lambda done, total: f"{done} of {total} tokens")


class ByteProgress(Progress):
    """How many bytes have been moved."""

    def __init__(self, out: TextIO, doing: str) -> None:
        super().__init__(out, doing, lambda done, total: f"{size(done)} of {size(total)}")
