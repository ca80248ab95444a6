"""MTP beside mlx-lm's plain decoding, measured on one conversation."""

import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace

import mlx.core as mx
from mlx_lm.generate import generate_step, wired_limit
from mlx_lm.sample_utils import make_sampler

from mlxmtp.decoding.depth import DepthPolicy
from mlxmtp.decoding.draft import MTPChain
from mlxmtp.decoding.loop import generate, never_stop
from mlxmtp.decoding.sampler import Sampler
from mlxmtp.decoding.sampling import Sampling
from mlxmtp.decoding.sequence import PREFILL_TOKENS, Sequence
from mlxmtp.engine.engine import Engine
from mlxmtp.engine.prompt import Prompt, encode
from mlxmtp.engine.request import GenerationOptions
from mlxmtp.errors import PromptError

WARM_UP = 8
"""Tokens that each arm generates before it is timed: the first rounds compile."""


@dataclass(frozen=True)
class Speed:
    """Decode rates in tokens a second, a pair for each repeat: plain decoding by mlx-lm, and ours at `depth`.

    A depth of None is the engine's own choice.

    `done` of `total` tokens are generated; the last of them complete the measurement.
    """

    depth: int | None
    done: int
    total: int
    plain: tuple[float, ...] = ()
    mtp: tuple[float, ...] = ()

    @property
    def ratios(self) -> list[float]:
        """Ours to plain, of runs that followed each other."""
        return [ours / plain for ours, plain in zip(self.mtp, self.plain, strict=False)]


def compare(
    engine: Engine,
    prompt: Prompt,
    options: GenerationOptions,
    *,
    tokens: int = 48,
    repeats: int = 3,
    on_prefill: Callable[[int, int], None] | None = None,
) -> Generator[Speed, None, None]:
    """Measure both, in turn, on what would follow `prompt`, past end tokens; a record at every step.

    The prompt is read once, and every run goes on from a copy of its caches. Of `options`, the sampling chain,
    `depth` and `thinking` count; depth 0 measures our own plain decoding.

    Raises:
        PromptError: the prompt leaves no room for `tokens` more.
        OptionError: as `Engine.stream`.
    """
    ids = encode(engine.tokenizer, prompt, raw=False, thinking=options.thinking)
    if len(ids) + tokens > engine.context:
        found = f"the conversation has {len(ids)} of {engine.context} tokens"
        raise PromptError(f"{found}; no room to measure {tokens} more")
    depth, sampling = options.depth, options.sampling
    policy = engine.policy(depth)
    speed = Speed(depth, 0, 2 * (WARM_UP + repeats * tokens))
    with wired_limit(engine.target.model):
        read = Sequence(engine.target, None if depth == 0 else engine.mtp)
        read.prefill(ids, PREFILL_TOKENS, on_prefill)
        for run in range(repeats + 1):
            count = tokens if run else WARM_UP
            rates = []
            for rounds in (_plain(engine, read, sampling, count), _ours(read, sampling, policy, count)):
                rate = 0.0
                for generated, so_far in _timed(rounds):
                    rate = so_far
                    speed = replace(speed, done=speed.done + generated)
                    if speed.done < speed.total:
                        yield speed
                rates.append(rate)
            if run:
                speed = replace(speed, plain=(*speed.plain, rates[0]), mtp=(*speed.mtp, rates[1]))
        yield speed


def _timed(rounds: Iterator[int]) -> Iterator[tuple[int, float]]:
    """Tokens of each round, and the rate so far: of what came after the first."""
    first = next(rounds)
    start, count = time.perf_counter(), 0
    yield first, 0.0
    for generated in rounds:
        count += generated
        yield generated, count / (time.perf_counter() - start)


def _plain(engine: Engine, read: Sequence, sampling: Sampling, tokens: int) -> Iterator[int]:
    chain = make_sampler(sampling.temperature, sampling.top_p, sampling.min_p, top_k=sampling.top_k)
    last, cache = mx.array(read.tokens[-1:]), read.fork().cache
    for _ in generate_step(last, engine.target.model, max_tokens=tokens, sampler=chain, prompt_cache=cache):
        yield 1


def _ours(read: Sequence, sampling: Sampling, policy: DepthPolicy, tokens: int) -> Iterator[int]:
    drafter = MTPChain(read.head) if read.head else None
    for one in generate(read.target, drafter, read.fork(), Sampler(sampling), policy, never_stop, tokens):
        yield len(one.tokens)
