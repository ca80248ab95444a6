"""From token ids back to text, round by round, up to an end token or a stop string."""

from collections.abc import Sequence
from typing import Any

from mlxmtp.decoding.loop import StopDecision


class StreamingDetokenizer:
    """Detokenises a turn as it comes and finds where it stops.

    Text that may be the start of a stop string is held back until it is known; the stop string itself and what
    follows it are never given out. The end token counts as a token of the turn and has no text.

    Args:
        tokenizer: mlx-lm's `TokenizerWrapper`.
        stop: stop strings; they may straddle tokens and rounds.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str]) -> None:
        self._detokenizer = tokenizer.detokenizer
        self._detokenizer.reset()
        self._ends = tokenizer.eos_token_ids
        self._stop = tuple(stop)
        self._held = ""
        self._ready = ""
        self.stopped_by: str | None = None
        """The stop string that ended the turn."""

    def feed(self, tokens: list[int]) -> StopDecision:
        """Read a round's tokens; returns how many belong to the turn, and "stop" where it ends among them."""
        for count, token in enumerate(tokens, start=1):
            if token in self._ends:
                self.finish()
                return StopDecision(count, "stop")
            self._detokenizer.add_token(token)
            if self._read():
                return StopDecision(count, "stop")
        return StopDecision(len(tokens), None)

    def finish(self) -> None:
        """The turn is over: give out what was held back."""
        self._detokenizer.finalize()
        if not self._read():
            self._ready, self._held = self._ready + self._held, ""

    def take(self) -> str:
        """The text that has become certain since the last call."""
        text, self._ready = self._ready, ""
        return text

    def _read(self) -> bool:
        """Take in the detokenizer's new text; True where it completes a stop string."""
        self._held += self._detokenizer.last_segment
        found = [(at, stop) for stop in self._stop if (at := self._held.find(stop)) >= 0]
        if found:
            at, self.stopped_by = min(found)
            self._ready, self._held = self._ready + self._held[:at], ""
            return True
        keep = max((_overlap(self._held, stop) for stop in self._stop), default=0)
        cut = len(self._held) - keep
        self._ready, self._held = self._ready + self._held[:cut], self._held[cut:]
        return False


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that `stop` begins with."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
