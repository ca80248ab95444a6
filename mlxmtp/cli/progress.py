"""The progress of a long prefill on standard error: in place on a terminal, otherwise a line now and then."""

import threading
import time
from types import TracebackType
from typing import Self, TextIO

PATIENCE_S = 1.0
"""Nothing is shown for a prefill shorter than this."""
PAUSE_S = 10.0
"""The least time between two lines where the display is not a terminal."""
ERASE_LINE = "\r\x1b[K"


class PrefillProgress:
    """Shows how much of the prompt has been read, from the first second until `close`.

    A thread of its own notices that the second is over: one chunk of a long prompt can take much longer.
    """

    def __init__(self, out: TextIO) -> None:
        self._out = out
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
        """`done` of `total` prompt tokens have been read."""
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
            line = "Reading the prompt ..."
            if self._done is not None:
                done, total = self._done
                line = f"Reading the prompt: {done} of {total} tokens ({done / total:.0%})"
            self._write(ERASE_LINE + line if self._in_place else line + "\n")

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()
