"""Running the engine below its text: fixed numbers of tokens, past end tokens."""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import mlx.core as mx
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import make_prompt_cache

from mlxmtp import Engine
from mlxmtp.decoding.depth import FixedDepth
from mlxmtp.decoding.draft import MTPChain
from mlxmtp.decoding.loop import StopCheck, generate, never_stop
from mlxmtp.decoding.sampler import Sampler, VerifyMode
from mlxmtp.decoding.sampling import Sampling
from mlxmtp.decoding.sequence import Sequence
from mlxmtp.decoding.stats import Round
from tests.scripted import assert_same_state, snapshot


def plain_run(engine: Engine, prompt: list[int], count: int, prefill_tokens: int = 2048) -> tuple[list[int], list[Any]]:
    """Return the greedy tokens of mlx-lm's own `generate_step`, and its cache, which holds all of them."""
    model = engine.target.model
    cache = make_prompt_cache(model)
    options = {"max_tokens": count, "prefill_step_size": prefill_tokens, "prompt_cache": cache}
    return [token for token, _ in generate_step(mx.array(prompt), model, **options)], cache


def reference(engine: Engine, prompt: list[int], count: int, prefill_tokens: int = 2048) -> list[int]:
    """Return the tokens of `plain_run`."""
    return plain_run(engine, prompt, count, prefill_tokens)[0]


def remembered(engine: Engine) -> Callable[..., list[int]]:
    """Return `reference` of one engine as a function that runs each prompt once, for many comparisons with it."""
    run = cache(lambda prompt, *options: reference(engine, list(prompt), *options))
    return lambda prompt, *options: list(run(tuple(prompt), *options))


def prefilled(engine: Engine, prompt: list[int], depth: int, prefill_tokens: int = 2048) -> Sequence:
    """Return a sequence that has read all tokens of a prompt but the last; the head reads along unless `depth` is 0."""
    sequence = Sequence(engine.target, engine.mtp if depth else None)
    sequence.prefill(prompt, prefill_tokens)
    return sequence


def rounds(
    engine: Engine,
    sequence: Sequence,
    count: int,
    depth: int,
    sampling: Sampling | None = None,
    stop_check: StopCheck = never_stop,
    verify: VerifyMode | None = None,
) -> Iterator[Round]:
    """Yield the rounds of at most `count` tokens after a prefilled sequence; depth 0 decodes plainly."""
    sampler = Sampler(sampling or Sampling(), verify)
    if depth == 0:
        return generate(engine.target, None, sequence, sampler, FixedDepth(0), stop_check, count)
    assert engine.mtp
    return generate(engine.target, MTPChain(engine.mtp), sequence, sampler, FixedDepth(depth), stop_check, count)


def assert_plain(
    engine: Engine, prompt: list[int], plain: tuple[list[int], list[Any]], depth: int, prefill_tokens: int = 2048
) -> list[Round]:
    """Assert that a turn has the tokens and, bit for bit, the caches of a `plain_run`; return its rounds."""
    tokens, cache = plain
    sequence = prefilled(engine, prompt, depth, prefill_tokens)
    run = list(rounds(engine, sequence, len(tokens) + 1, depth))  # the last token is in no cache
    assert [token for item in run for token in item.tokens][:-1] == tokens, f"depth {depth}"
    assert_same_state(snapshot(sequence.cache), snapshot(cache), f"depth {depth}")
    return run


def generated(engine: Engine, prompt: list[int], count: int, depth: int, prefill_tokens: int = 2048) -> list[int]:
    """Return `count` greedy tokens."""
    sequence = prefilled(engine, prompt, depth, prefill_tokens)
    return [token for item in rounds(engine, sequence, count, depth) for token in item.tokens]
