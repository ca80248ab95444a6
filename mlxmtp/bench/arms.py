"""The ways to decode that are compared, each going on from the same prompt, read once."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from collections.abc import Sequence as Several
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.sample_utils import make_sampler

from mlxmtp.decoding.auto import AutoDepth
from mlxmtp.decoding.sampler import Draft, Sampler
from mlxmtp.decoding.sampling import Sampling
from mlxmtp.decoding.sequence import PREFILL_TOKENS, Sequence
from mlxmtp.decoding.verify import Acceptance
from mlxmtp.engine.engine import Engine
from mlxmtp.engine.prefix_cache import PrefixCache
from mlxmtp.engine.request import GenerationOptions
from mlxmtp.engine.turn import Chunk
from mlxmtp.heads import Head
from mlxmtp.targets import Cache, Target


@dataclass(frozen=True)
class Run:
    """One arm once.

    Args:
        tokens: generated. rate: tokens a second of what came after the first round; 0.0 where nothing did.
        first_s: seconds to the first token behind a prompt that has been read. rounds: passes of the target.
        drafted, accepted: drafts of the head by depth. looked_up, looked_up_accepted: of the text.
        peak_bytes: the most memory, weights included, without what only the benchmark holds.
        policy: what the engine says of the depths that it chose.
    """

    tokens: tuple[int, ...]
    rate: float
    first_s: float
    rounds: int
    drafted: tuple[int, ...]
    accepted: tuple[int, ...]
    peak_bytes: int
    policy: str = ""
    looked_up: int = 0
    looked_up_accepted: int = 0

    def to_dict(self) -> dict[str, Any]:
        """For the record: all but the tokens themselves."""
        fields = vars(self) | {"tokens": len(self.tokens)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}


@dataclass(frozen=True)
class Prefill:
    """How a prompt was read: seconds for all but its last token, and the most memory that it took."""

    seconds: float
    peak_bytes: int


class TokenEngine(Engine):
    """An engine whose turns go past end tokens and write no text, as mlx-lm's `generate_step`.

    Args:
        acceptance: each draft stands with this probability; None: verified as ever.
    """

    def __init__(self, engine: Engine, acceptance: float | None = None) -> None:
        vars(self).update(vars(engine))
        if engine.mtp:
            most, most_repeated = self._auto_depths
            looked_up = most_repeated if acceptance is None else 0  # coins stand for the head's drafts
            self._auto = AutoDepth(most, looked_up)  # begins anew: figures must not depend on earlier runs
        self.tokenizer = _Endless(engine.tokenizer)
        self._acceptance = acceptance

    def _remembering(self, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        return chunks  # nor later runs on coins

    def _sampler(self, options: GenerationOptions, prompt: list[int]) -> Sampler:
        if self._acceptance is None:
            return super()._sampler(options, prompt)
        return SyntheticVerifier(self._acceptance, options.seed or 0)


class SyntheticVerifier(Sampler):
    """Greedy verification with all its work, whose verdict is then thrown by coins: the price of a given acceptance.

    The tokens are whatever was drafted, and prove nothing.
    """

    def __init__(self, acceptance: float, seed: int) -> None:
        super().__init__(Sampling())
        self._acceptance = acceptance
        self._coins = random.Random(seed)

    def verify(
        self, logits: mx.array, draft: Draft, position: int, pending_token: mx.array | None = None
    ) -> tuple[Acceptance, mx.array]:
        verdict, sound = super().verify(logits, draft, position, pending_token)
        coins = [self._coins.random() < self._acceptance for _ in range(draft.depth)]
        stand = coins.index(False) if False in coins else draft.depth
        accepted = mx.where(verdict.accepted >= 0, stand, 0).astype(mx.int32)  # still waits for the true verdict
        return Acceptance(accepted, verdict.token), sound


class ReadPrompt:
    """A prompt in the caches of both, for runs that each go on from a copy.

    Args:
        tokens: the prompt. ours_first: who reads first.
    """

    def __init__(self, engine: TokenEngine, tokens: Several[int], *, ours_first: bool) -> None:
        self.engine = engine
        self.tokens = list(tokens)
        self.readings: dict[str, Prefill] = {}
        mx.synchronize()
        mx.clear_cache()
        self._weights = mx.get_active_memory()
        for reader in (self._read_ours, self._read_theirs) if ours_first else (self._read_theirs, self._read_ours):
            reader()

    def run_mlx_lm(self, count: int, options: GenerationOptions) -> Run:
        """mlx-lm's own loop, caches and sampler."""
        held = self._settled()
        mx.random.seed(options.seed or 0)
        sampler = make_sampler(options.temperature)
        last, cache = mx.array(self.tokens[-1:]), deepcopy(self._theirs)
        model = self.engine.target.model
        start = time.perf_counter()
        steps = generate_step(last, model, max_tokens=count, sampler=sampler, prompt_cache=cache)
        tokens = [_id(next(steps)[0])]
        first = time.perf_counter()
        tokens += [_id(token) for token, _ in steps]
        seconds = time.perf_counter() - first
        rate = (count - 1) / seconds if count > 1 else 0.0
        return Run(tuple(tokens), rate, first - start, count, (), (), mx.get_peak_memory() - held)

    def run_ours(self, depth: int | None, count: int, options: GenerationOptions) -> Run:
        """The engine's own turn; `depth` as in `GenerationOptions`."""
        held = self._settled()
        tokens: list[int] = []
        options = replace(options, max_tokens=count, depth=depth)
        for chunk in self.engine.stream(self.tokens, options, prefix_cache=_Fork(self.ours)):
            tokens += chunk.tokens
        stats = chunk.stats
        peak, looked_up = stats.peak_memory_bytes - held, (stats.looked_up, stats.looked_up_accepted)
        measured = stats.decode_tps, stats.ttft_s, stats.rounds, stats.drafted_by_depth, stats.accepted_by_depth
        return Run(tuple(tokens), *measured, peak, stats.policy, *looked_up)

    def gap(self, tokens: Several[int], one: int, other: int) -> float:
        """How much likelier the first of two tokens is than the second behind the prompt and `tokens`, in nats."""
        sequence = self.ours.fork()
        logits, _ = self.engine.target.forward(mx.array([[self.tokens[-1], *tokens]]), sequence.cache)
        last = logits[0, -1].astype(mx.float32)
        gap: float = (last[one] - last[other]).item()  # type: ignore[assignment]
        return gap

    def _settled(self) -> int:
        """Nothing runs any more; bytes of what is held besides the weights, of which no arm knows."""
        mx.synchronize()  # mlx-lm's loop leaves a pass under way
        mx.clear_cache()
        mx.reset_peak_memory()
        return mx.get_active_memory() - self._weights

    def _read_theirs(self) -> None:
        held, start, left = self._settled(), time.perf_counter(), self.tokens
        model = self.engine.target.model
        self._theirs: Cache = make_prompt_cache(model)
        while len(left) > 1:  # in the chunks of `generate_step`
            rows = min(PREFILL_TOKENS, len(left) - 1)
            model(mx.array([left[:rows]]), cache=self._theirs)
            mx.eval([layer.state for layer in self._theirs])
            mx.clear_cache()
            left = left[rows:]
        self._done("mlx-lm", start, held)

    def _read_ours(self) -> None:
        held, start = self._settled(), time.perf_counter()
        self.ours = Sequence(self.engine.target, self.engine.mtp)
        self.ours.prefill(self.tokens)
        self.ours.settle()
        self._done("ours", start, held)

    def _done(self, who: str, start: float, held: int) -> None:
        self.readings[who] = Prefill(time.perf_counter() - start, mx.get_peak_memory() - held)


class _Fork(PrefixCache):
    """Has the whole prompt for one turn, and keeps nothing of it."""

    def __init__(self, read: Sequence) -> None:
        super().__init__(0)
        self._read = read

    def take(self, prompt: list[int], target: Target, head: Head | None) -> Sequence:
        twin = self._read.fork()
        twin.drafting = twin.drafting and head is not None
        return twin

    def keep(self, sequence: Sequence) -> None:
        pass


class _Endless:
    """A tokenizer without end tokens, for whose detokenizer all tokens are silent."""

    eos_token_ids: frozenset[int] = frozenset()

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    @property
    def detokenizer(self) -> _Silent:
        return _Silent()

    def __len__(self) -> int:
        return len(self._tokenizer)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


class _Silent:
    last_segment = ""

    def reset(self) -> None:
        pass

    def add_token(self, token: int) -> None:
        pass

    def finalize(self) -> None:
        pass


def _id(token: Any) -> int:
    return int(token)
