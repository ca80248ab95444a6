"""Turns on several ranks: what rank 0 decides, and how the others follow it (docs/several-macs.md).

Rank 0 tells the others each step before it takes it: a turn is opened, reads a chunk, takes part in a round, ends. So
clocks, readers, cancellations and memory are rank 0's alone. Two things more are not the same by themselves: seeds,
which rank 0 draws and sends with the turn, and the plans of the depth policy, which measures times.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import cached_property, partial
from typing import Any, TypeVar
from weakref import WeakKeyDictionary, finalize

from mlxmtp.decoding.depth import DepthPolicy, Observation, Plan, SharingPolicy
from mlxmtp.decoding.loop import Outcome, RoundLoop
from mlxmtp.decoding.turn import Turn
from mlxmtp.engine.generate import TextTurn
from mlxmtp.engine.prefix_cache import PrefixCache
from mlxmtp.engine.request import GenerationOptions
from mlxmtp.errors import MlxmtpError
from mlxmtp.ranks import Ranks
from mlxmtp.targets import Target

T = TypeVar("T")


class StepPolicy:
    """A depth policy that plans on rank 0, for all ranks. Every message checks that all have the same tokens so far."""

    def __init__(self, ranks: Ranks, policy: DepthPolicy) -> None:
        self._ranks = ranks
        self._policy = policy

    @property
    def why(self) -> str:
        return self._policy.why

    @cached_property
    def max_lookup(self) -> int:
        """Rank 0's bound: other machines may have others. First asked when a turn's rounds begin."""
        most: int = self._ranks.agree(self._policy.max_lookup)
        return most

    def begin_turn(self, tokens: Sequence[int] = ()) -> None:
        self._ranks.note(tokens)
        self._policy.begin_turn(tokens)

    def plan(self, matches: Sequence[int] = (0,)) -> list[Plan]:
        plans = self._policy.plan(matches) if self._ranks.leads else []
        return [Plan(*plan) for plan in self._ranks.agree([(plan.depth, plan.source) for plan in plans])]

    def best_together(self, num_turns: int) -> int:
        """Rank 0 alone is asked, and tells the others which turns take part."""
        return self._policy.best_together(num_turns) if isinstance(self._policy, SharingPolicy) else num_turns

    def observe(self, observations: Sequence[Observation]) -> None:
        for observation in observations:
            self._ranks.note(observation.round.tokens)
        if self._ranks.leads:
            self._policy.observe(observations)


def with_shared_seed(options: GenerationOptions) -> GenerationOptions:
    """Return the options with the seed that rank 0 draws for the turn; the verification is that without a seed."""
    if options.seed is not None:
        return options
    return replace(options, seed=secrets.randbits(64), verify=options.verify or "block")


def check_reuse(ranks: Ranks, reused: int) -> None:
    """Check that every rank's prefix cache has given as many tokens, before they read the rest."""
    ranks.note([reused])
    ranks.agree()


class Steps:
    """The steps of an engine's turns, which rank 0 tells the other ranks before it takes them.

    Attributes:
        numbers: by which they know the turns that take part in rounds.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._next = itertools.count()
        self._caches: WeakKeyDictionary[PrefixCache, int] = WeakKeyDictionary()
        self._gone: list[int] = []  # numbers of caches that nobody uses any more
        self.numbers: WeakKeyDictionary[Turn, int] = WeakKeyDictionary()

    def job(self, options: GenerationOptions, cache: PrefixCache | None, raw: bool, opening: str) -> dict[str, Any]:
        """Return what other ranks need of a turn beside its prompt, as plain data (`mlxmtp.engine.follow`).

        Args:
            options: with the seed of all ranks.
            cache: of rank 0; other ranks keep one of the same size for each.
        """
        if cache and cache not in self._caches:
            self._caches[cache] = next(self._next)
            finalize(cache, self._gone.append, self._caches[cache])
        own = cache and [self._caches[cache], cache.max_bytes]
        return {"options": asdict(options), "cache": own, "raw": raw, "opening": opening}

    def open(self, job: dict[str, Any]) -> int:
        """Tell of a new turn; return its number."""
        number, gone = next(self._next), [*self._gone]
        del self._gone[: len(gone)]
        self._ranks.agree(["open", number, job | {"gone": gone}])
        return number

    def take(self, action: Callable[[], T], kind: str, *content: Any) -> T:
        """Tell of a step and take it; return what the action gives.

        An error that other ranks may not have, of memory for instance, ends all of them: they would wait for this one.
        Errors of this package are the same on every rank.
        """
        self._ranks.agree([kind, *content])
        try:
            return action()
        except MlxmtpError:
            raise
        except Exception as error:
            self._ranks.end(error)


class LeadingTurn(TextTurn):
    """A turn of rank 0, which tells the other ranks what it does.

    Args:
        job: of `Steps.job`.
    """

    def __init__(self, steps: Steps, job: dict[str, Any], *parts: Any, **named: Any) -> None:
        super().__init__(*parts, **named)
        self._steps, self._job = steps, job
        self._number: int | None = None

    def read_chunk(self) -> tuple[int, int] | None:
        if self._number is None:
            prompt = {"prompt": self.prompt, "boundaries": [*self.boundaries], "prefill_tokens": self.prefill_tokens}
            self._number = self._steps.open(self._job | prompt)
        progress = self._steps.take(super().read_chunk, "read", self._number)
        if not self.reading:
            self._steps.numbers[self.turn] = self._number
        return progress

    def close(self) -> None:
        number, self._number = self._number, None
        if number is None:
            super().close()
        else:
            self._steps.take(super().close, "close", number)


class LeadingLoop(RoundLoop):
    """The round loop of rank 0, which tells the other ranks what takes part in each round."""

    def __init__(self, steps: Steps, target: Target) -> None:
        super().__init__(target)
        self._steps = steps

    def round(self, turns: Sequence[Turn], *, ahead: bool = True) -> dict[Turn, Outcome]:
        numbers = [self._steps.numbers[turn] for turn in turns]
        return self._steps.take(partial(self._round, turns, ahead), "round", numbers, ahead)

    def _round(self, turns: Sequence[Turn], ahead: bool) -> dict[Turn, Outcome]:
        outcomes = super().round(turns, ahead=ahead)
        for outcome in outcomes.values():
            if isinstance(outcome, RuntimeError | MemoryError):  # of MLX: no fault of the turn in which it was met
                raise outcome
        return outcomes
