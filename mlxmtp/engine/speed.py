"""Measures MTP beside mlx-lm's plain decoding on one conversation."""

import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace

import mlx.core as mx
from mlx_lm.generate import generate_step
from mlx_lm.sample_utils import make_sampler

from mlxmtp.decoding.depth import DepthPolicy
from mlxmtp.decoding.draft import MTPChain, narrowed_chain
from mlxmtp.decoding.loop import generate, never_stop
from mlxmtp.decoding.sampler import Sampler
from mlxmtp.decoding.sampling import Sampling
from mlxmtp.decoding.sequence import PREFILL_TOKENS, Sequence
from mlxmtp.engine.engine import Engine
from mlxmtp.engine.prompt import Prompt, encode
from mlxmtp.engine.request import GenerationOptions
from mlxmtp.errors import OptionError, PromptError

WARM_UP = 8
"""Tokens that each arm generates untimed, because the first rounds compile."""


@dataclass(frozen=True)
class Speed:
    """Decode rates in tokens a second: of plain decoding by mlx-lm and of ours, one pair for each repeat.

    The measurement is complete when `done` is `total`.

    Args:
        depth: drafts in a round; None: the policy chooses.
        done, total: tokens generated so far, and of the whole measurement.
        plain, mtp: the rates of mlx-lm and of ours.
    """

    depth: int | None
    done: int
    total: int
    plain: tuple[float, ...] = ()
    mtp: tuple[float, ...] = ()

    @property
    def ratios(self) -> list[float]:
        """Our rate divided by the plain rate of the same repeat."""
        return [mtp / plain for mtp, plain in zip(self.mtp, self.plain, strict=False)]


def compare(
    engine: Engine,
    prompt: Prompt,
    options: GenerationOptions,
    *,
    tokens: int = 48,
    repeats: int = 3,
    on_prefill: Callable[[int, int], None] | None = None,
) -> Generator[Speed, None, None]:
    """Measure both in turn on what follows `prompt`, past end tokens; yield the state at every step.

    The prompt is read once, and each run continues from a copy of its caches.

    Args:
        options: the sampling chain, `depth` and `thinking` count; depth 0 measures our own plain decoding.
        tokens: generated in each run.
        repeats: runs of each arm.
        on_prefill: called with (done, total) tokens after each chunk of the prompt.

    Raises:
        PromptError: the prompt leaves no room for `tokens` more.
        OptionError: as in `Engine.stream`.
    """
    if engine.ranks:
        raise OptionError("speeds are compared on one machine; leave out --hosts and -n")
    ids = encode(engine.tokenizer, prompt, raw=False, thinking=options.thinking)
    if len(ids) + tokens > engine.context:
        found = f"the conversation has {len(ids)} of {engine.context} tokens"
        raise PromptError(f"{found}; no room to measure {tokens} more")
    depth, sampling = options.depth, options.sampling
    policy = engine.policies.of(depth)
    speed = Speed(depth, 0, 2 * (WARM_UP + repeats * tokens))
    prefilled = Sequence(engine.target, None if depth == 0 else engine.mtp)
    for progress in prefilled.prefill_chunks(ids, PREFILL_TOKENS):
        if on_prefill:
            on_prefill(*progress)
    for run in range(repeats + 1):
        count = tokens if run else WARM_UP
        rates = []
        for generated in (
            _plain(engine, prefilled, sampling, count),
            _ours(engine, prefilled, sampling, policy, count),
        ):
            rate = 0.0
            for num_tokens, rate_so_far in _timed(generated):
                rate = rate_so_far
                speed = replace(speed, done=speed.done + num_tokens)
                if speed.done < speed.total:
                    yield speed
            rates.append(rate)
        if run:
            speed = replace(speed, plain=(*speed.plain, rates[0]), mtp=(*speed.mtp, rates[1]))
    yield speed


def _timed(generated: Iterator[int]) -> Iterator[tuple[int, float]]:
    """For each step its number of tokens, and the rate so far: of the tokens after the first step."""
    first = next(generated)
    start, count = time.perf_counter(), 0
    yield first, 0.0
    for num_tokens in generated:
        count += num_tokens
        yield num_tokens, count / (time.perf_counter() - start)


def _plain(engine: Engine, prefilled: Sequence, sampling: Sampling, tokens: int) -> Iterator[int]:
    sampler = make_sampler(sampling.temperature, sampling.top_p, sampling.min_p, top_k=sampling.top_k)
    last, cache = mx.array(prefilled.tokens[-1:]), prefilled.fork().cache
    for _ in generate_step(last, engine.target.model, max_tokens=tokens, sampler=sampler, prompt_cache=cache):
        yield 1


def _ours(engine: Engine, prefilled: Sequence, sampling: Sampling, policy: DepthPolicy, tokens: int) -> Iterator[int]:
    drafter = MTPChain(prefilled.head) if prefilled.head else None
    narrowed = narrowed_chain(prefilled.head, engine.narrowed)
    sequence, sampler = prefilled.fork(), Sampler(sampling)
    for item in generate(prefilled.target, drafter, sequence, sampler, policy, never_stop, tokens, None, narrowed):
        yield len(item.tokens)
