"""The depth policies of an engine's turns: fixed ones, and the one that learns over all turns and runs."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Protocol

from mlxmtp.decoding.auto_depth import AutoDepth
from mlxmtp.decoding.coverage import Coverage
from mlxmtp.decoding.depth import DepthPolicy, FixedDepth
from mlxmtp.decoding.sharing_rates import PassSharing
from mlxmtp.engine import depth_store
from mlxmtp.engine.in_step import StepPolicy
from mlxmtp.engine.request import check_depth
from mlxmtp.engine.store import ModelFacts
from mlxmtp.errors import OptionError
from mlxmtp.exactness.guarantee import Guarantee, Identity
from mlxmtp.heads import Head, NarrowedLogits
from mlxmtp.limits import MAX_DEPTH
from mlxmtp.ranks import Ranks
from mlxmtp.targets import Target

MAX_AUTO_DEPTH = 8
"""Most drafts of the head in a round where the policy chooses."""


class DraftingModel(Protocol):
    """What of an engine the policies depend on; its attributes are told in `mlxmtp.engine.engine.Engine`."""

    target: Target
    mtp: Head | None
    plain_because: str | None
    identity: Identity
    narrowed: NarrowedLogits | None
    ranks: Ranks | None

    @property
    def facts(self) -> ModelFacts: ...

    @property
    def guarantee(self) -> Guarantee: ...


class DepthPolicies:
    """The policies of one engine.

    Attributes:
        sharing: says how many of its running turns share a pass.
    """

    def __init__(self, engine: DraftingModel) -> None:
        self._engine = engine
        self.sharing = PassSharing()

    def of(self, depth: int | None) -> DepthPolicy:
        """Return what chooses the drafts of each round: a fixed depth, or for None the engine's adaptive policy.

        Raises:
            OptionError: out of range, without a head, or more than `identity` was shown for.
        """
        engine = self._engine
        if depth is None and engine.mtp:
            return self._auto_in_step if engine.ranks else self._auto
        policy = FixedDepth(self._checked(depth or 0))
        return StepPolicy(engine.ranks, policy) if engine.ranks else policy

    def _checked(self, depth: int) -> int:
        engine = self._engine
        check_depth(depth)
        if depth and not engine.mtp:
            raise OptionError(f"depth is {depth}, but there is no MTP head: {engine.plain_because}")
        if engine.identity != "fast" and depth >= engine.guarantee.num_tokens:
            shown = f"{engine.identity} identity has been shown for depths up to {engine.guarantee.num_tokens - 1}"
            raise OptionError(f"depth is {depth}, but {shown}; choose one of them, or --identity fast")
        return depth

    def fresh(self, *, lookup: bool = True) -> DepthPolicy:
        """Return a policy like `of(None)` that has learned nothing, for measurements of their own.

        Args:
            lookup: drafts may also come from prompt lookup and from a narrowed vocabulary.
        """
        if self._engine.mtp is None:
            return FixedDepth(0)
        max_depth, max_lookup = self._auto_depths
        if not lookup:
            return AutoDepth(max_depth, longest_shared=self._longest_shared)
        return AutoDepth(max_depth, max_lookup, coverage=self._coverage(), longest_shared=self._longest_shared)

    def save(self) -> None:
        """Save what the adaptive policy has learned, for the next run. With ranks the first one has learned."""
        if self._engine.ranks and not self._engine.ranks.leads:
            return
        if isinstance(auto := vars(self).get("_auto"), AutoDepth):
            depth_store.save(self._depth_file, auto)

    def _coverage(self) -> Coverage | None:
        narrowed = self._engine.narrowed
        return Coverage(narrowed.vocabulary) if narrowed else None

    @property
    def _auto_depths(self) -> tuple[int, int]:
        """Most drafts that the adaptive policy may choose: from the head, and by prompt lookup."""
        most = min(self._engine.target.max_fast_tokens, self._engine.guarantee.num_tokens)
        return min(MAX_AUTO_DEPTH, most - 1), min(MAX_DEPTH, most - 1)

    def _longest_shared(self, num_sequences: int) -> int:
        """Most tokens of each sequence in a shared pass; known once the guarantee covers so many."""
        return self._engine.target.longest_shared(num_sequences)

    @cached_property
    def _auto(self) -> AutoDepth:
        return depth_store.load(self._depth_file, *self._auto_depths, self._coverage(), self._longest_shared)

    @cached_property
    def _auto_in_step(self) -> StepPolicy:
        assert self._engine.ranks
        return StepPolicy(self._engine.ranks, self._auto)  # one for all turns, so that one plan serves a round

    @cached_property
    def _depth_file(self) -> Path:
        return depth_store.file_for(self._engine.facts, self._engine.identity)
