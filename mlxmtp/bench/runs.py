"""The runs of a benchmark: mlx-lm and mlxmtp decode from copies of the same prefilled prompt."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from collections.abc import Sequence as Several
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.sample_utils import make_sampler

from mlxmtp.decoding.depth import DepthPolicy, FixedDepth
from mlxmtp.decoding.draft import MTPChain, narrowed_chain
from mlxmtp.decoding.loop import generate, never_stop
from mlxmtp.decoding.sampler import Draft, Sampler
from mlxmtp.decoding.sampling import Sampling
from mlxmtp.decoding.sequence import PREFILL_TOKENS, Sequence
from mlxmtp.decoding.stats import Round, StatsAccumulator
from mlxmtp.decoding.verify import Acceptance
from mlxmtp.engine.engine import Engine
from mlxmtp.engine.request import GenerationOptions
from mlxmtp.targets import Cache, check_ids


@dataclass(frozen=True)
class BenchRun:
    """The measurements of one run of an arm.

    Args:
        tokens: generated token ids.
        rate: tokens a second after the first round. 0.0 if there is only one round.
        first_s: seconds from the prefilled prompt to the first token.
        rounds: rounds, each one pass of the target.
        drafted, accepted: drafts of the head, by depth.
        peak_bytes: peak memory, weights included, without what only the benchmark holds.
        policy: the depth that auto chose last, and why.
        looked_up, looked_up_accepted: drafts of prompt lookup.
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
        """Return the measurements as JSON values, with the number of tokens in place of the tokens."""
        fields = vars(self) | {"tokens": len(self.tokens)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}


@dataclass(frozen=True)
class Prefill:
    """The prefill of a prompt without its last token: seconds, and peak memory in bytes."""

    seconds: float
    peak_bytes: int


class TokenDecoder:
    """Decodes with the engine's loop, past end tokens and without text, as mlx-lm's `generate_step` does.

    Its auto policy learns from run to run. It starts with nothing learned and saves nothing, so that figures do not
    depend on earlier turns, nor later turns on a benchmark.

    Args:
        acceptance: probability with which each draft is accepted, whatever it is. None: drafts are verified.
    """

    def __init__(self, engine: Engine, acceptance: float | None = None) -> None:
        self.target = engine.target
        self.head = engine.mtp
        self._engine = engine
        self._acceptance = acceptance
        # drafts of prompt lookup cost nothing, so they would not have the price of the given acceptance
        self._auto = engine.policies.fresh(lookup=acceptance is None)

    def policy(self, depth: int | None) -> DepthPolicy:
        """Return the policy of a fixed depth. None: the auto policy.

        Raises:
            OptionError: as `Engine.policy`.
        """
        return self._auto if depth is None else self._engine.policies.of(depth)

    def rounds(self, sequence: Sequence, depth: int | None, count: int, options: GenerationOptions) -> Iterator[Round]:
        """Yield the rounds that generate `count` tokens after a prefilled sequence.

        Args:
            depth: drafts a round. 0: plain. None: auto.
            options: their sampling chain and verification mode count.
        """
        head = None if depth == 0 else self.head
        sequence.drafting = sequence.drafting and head is not None
        drafter = MTPChain(head) if head else None
        policy = self.policy(depth) if head else FixedDepth(0)
        narrowed = narrowed_chain(head, self._engine.narrowed)
        sampler = self._sampler(options)
        return generate(self.target, drafter, sequence, sampler, policy, never_stop, count, None, narrowed)

    def _sampler(self, options: GenerationOptions) -> Sampler:
        if self._acceptance is None:
            return Sampler(options.sampling, options.verify)
        return SyntheticSampler(self._acceptance, options.seed or 0)


class SyntheticSampler(Sampler):
    """A greedy sampler that does all work of verification, then accepts drafts at random.

    It shows the speed of a given acceptance. The tokens are the drafts, whatever they are.

    Args:
        acceptance: probability with which each draft is accepted.
    """

    def __init__(self, acceptance: float, seed: int) -> None:
        super().__init__(Sampling())
        self._acceptance = acceptance
        self._random = random.Random(seed)

    def verify(
        self, logits: mx.array, draft: Draft, position: int, pending_token: mx.array | None = None
    ) -> tuple[Acceptance, mx.array]:
        acceptance, finite = super().verify(logits, draft, position, pending_token)
        accepts = [self._random.random() < self._acceptance for _ in range(draft.depth)]
        count = accepts.index(False) if False in accepts else draft.depth
        # depends on the real acceptance, so that the round waits for it
        accepted = mx.where(acceptance.accepted >= 0, count, 0).astype(mx.int32)
        return Acceptance(accepted, acceptance.token), finite


class PrefilledPrompt:
    """A prompt in the caches of mlx-lm and of mlxmtp. Each run goes on from a copy.

    Args:
        tokens: the prompt's token ids.
        ours_first: mlxmtp prefills before mlx-lm.

    Raises:
        PromptError: the embedding has no row for a token.

    Attributes:
        prefills: the prefills by program, "mlx-lm" and "ours".
        sequence: the prompt in the caches of mlxmtp.
    """

    def __init__(self, decoder: TokenDecoder, tokens: Several[int], *, ours_first: bool) -> None:
        check_ids(tokens, decoder.target.vocab_size)
        self.tokens = list(tokens)
        self.prefills: dict[str, Prefill] = {}
        self._decoder = decoder
        mx.synchronize()
        mx.clear_cache()
        self._weights = mx.get_active_memory()
        order = (self._prefill_ours, self._prefill_mlx_lm)
        for prefill in order if ours_first else reversed(order):
            prefill()

    def run_mlx_lm(self, count: int, options: GenerationOptions) -> BenchRun:
        """Generate `count` tokens with mlx-lm's own loop, caches and sampler, and return the measurements."""
        held = self._settle()
        mx.random.seed(options.seed or 0)
        sampler = make_sampler(options.temperature, options.top_p, options.min_p, top_k=options.top_k)
        last, cache = mx.array(self.tokens[-1:]), deepcopy(self._mlx_lm_cache)
        model = self._decoder.target.model
        start = time.perf_counter()
        steps = generate_step(last, model, max_tokens=count, sampler=sampler, prompt_cache=cache)
        tokens = [_id(next(steps)[0])]
        first = time.perf_counter()
        tokens += [_id(token) for token, _ in steps]
        seconds = time.perf_counter() - first
        rate = (count - 1) / seconds if count > 1 else 0.0
        return BenchRun(tuple(tokens), rate, first - start, count, (), (), mx.get_peak_memory() - held)

    def run_ours(self, depth: int | None, count: int, options: GenerationOptions) -> BenchRun:
        """Generate `count` tokens with mlxmtp's loop, and return the measurements.

        Args:
            depth: drafts a round. 0: plain. None: auto.
        """
        held = self._settle()
        sequence = self.sequence.fork()
        start = time.perf_counter()
        accumulator = StatsAccumulator(len(self.tokens), start, reused=len(self.tokens))
        tokens: list[int] = []
        for round in self._decoder.rounds(sequence, depth, count, options):
            accumulator.add(round, time.perf_counter())
            tokens += round.tokens
        why = self._decoder.policy(depth).why if self._decoder.head else ""
        stats = accumulator.stats(mx.get_peak_memory() - held, why)
        return BenchRun(
            tokens=tuple(tokens),
            rate=stats.decode_tps,
            first_s=stats.ttft_s,
            rounds=stats.rounds,
            drafted=stats.drafted_by_depth,
            accepted=stats.accepted_by_depth,
            peak_bytes=stats.peak_memory_bytes,
            policy=stats.policy,
            looked_up=stats.looked_up,
            looked_up_accepted=stats.looked_up_accepted,
        )

    def gap(self, tokens: Several[int], one: int, other: int) -> float:
        """Return the logit of one token minus that of another, after the prompt and `tokens`, in nats."""
        sequence = self.sequence.fork()
        logits, _ = self._decoder.target.forward(mx.array([[self.tokens[-1], *tokens]]), sequence.cache)
        last = logits[0, -1].astype(mx.float32)
        gap: float = (last[one] - last[other]).item()  # type: ignore[assignment]
        return gap

    def _settle(self) -> int:
        """Wait for the device, and return the bytes that are held besides the weights, which no run counts."""
        mx.synchronize()  # mlx-lm's loop leaves a pass in flight
        mx.clear_cache()
        mx.reset_peak_memory()
        return mx.get_active_memory() - self._weights

    def _prefill_mlx_lm(self) -> None:
        held, start, left = self._settle(), time.perf_counter(), self.tokens
        model = self._decoder.target.model
        self._mlx_lm_cache: Cache = make_prompt_cache(model)
        while len(left) > 1:  # in the chunks of `generate_step`
            num_tokens = min(PREFILL_TOKENS, len(left) - 1)
            model(mx.array([left[:num_tokens]]), cache=self._mlx_lm_cache)
            mx.eval([layer.state for layer in self._mlx_lm_cache])
            mx.clear_cache()
            left = left[num_tokens:]
        self._add_prefill("mlx-lm", start, held)

    def _prefill_ours(self) -> None:
        held, start = self._settle(), time.perf_counter()
        self.sequence = Sequence(self._decoder.target, self._decoder.head)
        self.sequence.prefill(self.tokens)
        self.sequence.settle()
        self._add_prefill("ours", start, held)

    def _add_prefill(self, program: str, start: float, held: int) -> None:
        self.prefills[program] = Prefill(time.perf_counter() - start, mx.get_peak_memory() - held)


def _id(token: Any) -> int:
    return int(token)
