"""A turn on several ranks: what rank 0 decides, and how the others follow it (docs/several-macs.md).

Each rank runs the whole turn: the same prompt, prefix cache, drafts, verification and text. Three things are not the
same by themselves. A seed is drawn on rank 0 and sent with the turn. The depth policy measures times: rank 0's plans.
The reader of rank 0's chunks may stop: after each chunk rank 0 says whether the turn goes on.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from mlxmtp.decoding.depth import DepthPolicy, Observation, Plan
from mlxmtp.engine.request import GenerationOptions
from mlxmtp.errors import MlxmtpError
from mlxmtp.ranks import Ranks

if TYPE_CHECKING:
    from mlxmtp.engine.generate import Chunk, TextTurn


class TurnStoppedError(MlxmtpError):
    """Rank 0's reader has ended the turn while the prompt was being read."""


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

    def observe(self, observations: Sequence[Observation]) -> None:
        for observation in observations:
            self._ranks.note(observation.round.tokens)
        if self._ranks.leads:
            self._policy.observe(observations)


def with_shared_seed(ranks: Ranks, options: GenerationOptions) -> GenerationOptions:
    """Return rank 0's options with the seed that it would draw for the turn; the verification is that without a seed.

    Other ranks get these options from rank 0.
    """
    if options.seed is not None or not ranks.leads:
        return options
    return replace(options, seed=secrets.randbits(64), verify=options.verify or "block")


def check_reuse(ranks: Ranks, reused: int) -> None:
    """Check that every rank's prefix cache has given as many tokens, before they read the rest."""
    ranks.note([reused])
    ranks.agree()


def prefill_in_step(ranks: Ranks, on_prefill: Callable[[int, int], None] | None) -> Callable[[int, int], None]:
    """Return what to call after each chunk of the prompt: if rank 0's function ends the turn there, it ends on all."""

    def watch(done: int, total: int) -> None:
        goes_on = False
        try:
            if on_prefill and ranks.leads:
                on_prefill(done, total)
            goes_on = True
        finally:
            goes_on = ranks.agree(goes_on)
        if not goes_on:
            raise TurnStoppedError("rank 0 has ended the turn")

    return watch


def turn_job(turn: TextTurn, options: GenerationOptions, arguments: Mapping[str, Any]) -> list[Any]:
    """Return a turn as plain data, for `mlxmtp.engine.follow`: the prompt as rank 0 has rendered it, and its options.

    Args:
        arguments: of `Engine.open_turn`. Of rank 0's prefix cache, other ranks keep one of the same size for each.
    """
    cache = arguments.get("prefix_cache")
    shared = cache and [id(cache), cache.max_bytes]
    raw, opening = arguments.get("raw", False), arguments.get("opening", "")
    return ["turn", [turn.prompt, asdict(options), shared, raw, turn.prefill_tokens, list(turn.boundaries), opening]]


def in_step(ranks: Ranks, chunks: Iterator[Chunk], job: list[Any]) -> Iterator[Chunk]:
    """Yield the chunks of a turn up to where rank 0's reader stops; rank 0 first sends the job to the others."""
    if ranks.leads:
        ranks.agree(job)
    with closing(chunks):  # type: ignore[type-var]
        for chunk in chunks:
            goes_on = False
            try:
                yield chunk
                goes_on = True
            finally:
                goes_on = ranks.agree(goes_on)
            if not goes_on:
                return
