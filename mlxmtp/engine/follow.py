"""`python -m mlxmtp.engine.follow`: a rank after the first, which loads and generates what rank 0 does."""

from __future__ import annotations

import os
import sys
import traceback
from contextlib import suppress
from typing import Any, NoReturn

from mlxmtp.engine.engine import Engine
from mlxmtp.engine.generate import TextTurn
from mlxmtp.engine.prefix_cache import PrefixCache
from mlxmtp.engine.request import GenerationOptions
from mlxmtp.errors import MlxmtpError
from mlxmtp.ranks import OutOfStepError, Ranks
from mlxmtp.ranks.join import join


def follow(ranks: Ranks) -> int:
    """Load and generate what rank 0 does; the text goes nowhere. Return 0, the exit code, where rank 0 ends all.

    What rank 0 reports to its user as an error is one here too, at the same place, and needs no report.

    Raises:
        OutOfStepError: this rank has other tokens than rank 0.
    """
    from mlxmtp.engine.loading import load

    engine: Any = None
    turns: Any = None
    while True:
        kind, *content = ranks.agree()
        if kind == "end":
            return 0
        with suppress(MlxmtpError):
            if kind == "load":
                engine = turns = None  # two models may not fit
                path, head, draft_vocab, mtp, device = content
                engine = load(path, head=head, draft_vocab=draft_vocab, mtp=mtp, device=device, ranks=ranks)
                turns = FollowedTurns(engine)
            else:
                turns.step(kind, *content)


class FollowedTurns:
    """The turns that rank 0 has open, by its numbers, and prefix caches of the sizes of its own."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._loop = engine.round_loop()
        self._turns: dict[int, TextTurn] = {}
        self._caches: dict[int, PrefixCache] = {}

    def step(self, kind: str, *content: Any) -> None:
        """Take a step of rank 0."""
        getattr(self, f"_{kind}")(*content)

    def _open(self, number: int, job: dict[str, Any]) -> None:
        cache = job["cache"]
        for gone in job["gone"]:
            self._caches.pop(gone, None)
        self._turns[number] = self._engine.open_turn(
            job["prompt"],
            GenerationOptions(**job["options"]),
            raw=job["raw"],
            prefill_tokens=job["prefill_tokens"],
            prefix_cache=self._caches.setdefault(cache[0], PrefixCache(cache[1])) if cache else None,
            boundaries=job["boundaries"],
            opening=job["opening"],
        )

    def _read(self, number: int) -> None:
        self._turns[number].read_chunk()

    def _round(self, numbers: list[int], ahead: bool) -> None:
        turns = [self._turns[number] for number in numbers]
        outcomes = self._loop.round([turn.turn for turn in turns], ahead=ahead)
        for turn in turns:
            if turn.turn in outcomes:
                with suppress(Exception):  # rank 0's reader gets it
                    turn.take(outcomes[turn.turn])

    def _try_sharing(self) -> None:
        _ = self._engine.why_apart  # runs the passes that rank 0 runs

    def _close(self, number: int) -> None:
        self._turns.pop(number).close()


def main() -> NoReturn:
    """Join rank 0 and follow it."""
    try:
        follow(join())
    except (OutOfStepError, MlxmtpError) as error:
        print(error, file=sys.stderr, flush=True)  # noqa: T201 - rank 0 passes it on
    except BaseException:
        traceback.print_exc()
    os._exit(1)  # the thread that reads the pipe is still there


if __name__ == "__main__":
    main()
