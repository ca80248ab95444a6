"""Programs that share a folder for caches: engine, prefix cache, store and worker within the test's process."""

from __future__ import annotations

import io
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from mlxmtp import Chunk, Engine
from mlxmtp.decoding.auto_depth import AutoDepth
from mlxmtp.decoding.depth import Plan
from mlxmtp.decoding.loop import Outcome
from mlxmtp.decoding.round_costs import RoundCosts
from mlxmtp.decoding.sequence import Sequence
from mlxmtp.decoding.stats import Round, TokenLogprob
from mlxmtp.engine.generate import TextTurn
from mlxmtp.engine.prefix_cache import PrefixCache
from mlxmtp.engine.prefix_disk import PrefixStore
from mlxmtp.worker.lines import decode
from mlxmtp.worker.messages import Command, Event, Finished, Generate, PromptProgress, TurnDelta
from mlxmtp.worker.serve import Worker

MAX_LOOKUP = 12


class TimelessAuto(AutoDepth):
    """The policy of `--depth auto` where looked-up drafts are nearly free: what it plans depends on no clock."""

    def __init__(self) -> None:
        head, lookup = ({depth: 1 + depth / n for depth in range(1, MAX_LOOKUP + 1)} for n in (4, 40))
        super().__init__(6, MAX_LOOKUP, RoundCosts(head, lookup))

    def _time(self, round: Round) -> None:
        pass


class Whims:
    """A depth policy that plans anything: plain rounds, drafts of the head and of prompt lookup, of any number."""

    why = ""
    max_lookup = MAX_LOOKUP

    def __init__(self, seed: int) -> None:
        self._seed, self._rounds = seed, 0

    def begin_turn(self, tokens: object = ()) -> None:
        pass

    def plan(self, matches: Iterable[int] = (0,)) -> list[Plan]:
        return [self._plan(match) for match in matches]

    def _plan(self, match: int) -> Plan:
        random = Random(f"{self._seed}, {self._rounds}")
        if match and random.random() < 0.8:
            return Plan(random.randint(1, MAX_LOOKUP), "lookup")
        return Plan(random.choice((0, 0, 1, 2, 3, 7)))

    def observe(self, observations: object) -> None:
        self._rounds += 1


class WatchedCache(PrefixCache):
    """A prefix cache that shows the sequence that it got last, and how many tokens the one had that it gave last."""

    inserted: Sequence | None = None
    reused = 0

    def fetch(self, *request: Any, **options: Any) -> Sequence:
        sequence = super().fetch(*request, **options)
        self.reused = len(sequence.tokens)
        return sequence

    def insert(self, sequence: Sequence) -> None:
        super().insert(sequence)
        self.inserted = sequence


@dataclass(frozen=True)
class Answer:
    """What became of a turn. Tokens and chunks come from the engine, the rest from the worker.

    Args:
        read, reused: tokens of the prompt that were read, and that were in the cache before.
    """

    tokens: list[int]
    chunks: list[Chunk]
    text: str
    logprobs: list[TokenLogprob]
    read: int
    reused: int
    end: Finished


class Program:
    """One process's part: its engine, its prefix cache in memory and on disk, and its worker."""

    def __init__(self, engine: Engine, folder: Path, memory: int, disk: int) -> None:
        self.engine = engine
        self.warnings: list[str] = []
        key = engine.facts.model_key()
        self.cache = WatchedCache(memory, PrefixStore(folder, disk, key, self.warnings.append, min_tokens=1))
        self.auto = TimelessAuto()

    def turn(self, command: Generate, policy: Any, stop_after: int | None, prefill_tokens: int) -> Answer:
        """Run a turn in the worker, which is stopped at the `stop_after`-th time that it asks."""
        self.engine.policies.__dict__["_auto"] = policy or self.auto
        chunks: list[Chunk] = []
        open_turn = type(self.engine).open_turn

        def watched(*args: Any, **options: Any) -> TextTurn:
            turn = open_turn(self.engine, *args, prefill_tokens=prefill_tokens, **options)
            take = turn.take

            def taken(outcome: Outcome) -> Chunk:
                chunks.append(take(outcome))
                return chunks[-1]

            turn.__dict__["take"] = taken
            return turn

        self.engine.__dict__["open_turn"] = watched
        self.cache.inserted, self.cache.reused = None, 0
        events = self._run(command, stop_after)
        del self.engine.__dict__["open_turn"]
        (end,) = (event for event in events if isinstance(event, Finished))
        deltas = [event for event in events if isinstance(event, TurnDelta)]
        return Answer(
            tokens=[token for chunk in chunks for token in chunk.tokens],
            chunks=chunks,
            text="".join(text for delta in deltas for _, text in delta.segments),
            logprobs=[
                TokenLogprob(token, own, tuple((one, value) for one, value in top))
                for delta in deltas
                for token, own, top in delta.logprobs
            ],
            read=max((event.done for event in events if isinstance(event, PromptProgress)), default=0),
            reused=self.cache.reused,
            end=end,
        )

    def end(self) -> None:
        """End as a process does whose input has ended: conversations go to the disk."""
        self._run(None)

    def _run(self, command: Command | None, stop_after: int | None = None) -> list[Event]:
        out = io.BytesIO()
        worker = Worker(_Single(command, stop_after), out)  # type: ignore[arg-type]
        worker.use(self.engine, self.cache)
        with suppress(_NoMoreError):
            worker.run()
        return [decode(line) for line in out.getvalue().splitlines()]  # type: ignore[misc]


class _NoMoreError(Exception):
    """There is no further command, and the worker goes on waiting."""


class _Single:
    """In place of an `Inbox`: one command, then nothing; None is the end of the input."""

    def __init__(self, command: Command | None, stop_after: int | None) -> None:
        self._commands = [command]
        self._left = stop_after

    def next(self) -> Command | None:
        if not self._commands:
            raise _NoMoreError
        return self._commands.pop()

    def poll(self) -> None:
        return None

    def stops(self, command: Command) -> bool:
        if self._left is None:
            return False
        self._left -= 1
        return self._left < 0
