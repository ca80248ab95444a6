"""Running the engine below its text: fixed numbers of tokens, past end tokens."""

from collections.abc import Iterator

import mlx.core as mx
from mlx_lm.generate import generate_step

from mlxmtp import Engine, Sampling
from mlxmtp.decoding.depth import FixedDepth
from mlxmtp.decoding.drafters import MTPChain
from mlxmtp.decoding.loop import Keep, decode_plainly, speculate
from mlxmtp.decoding.sequence import Sequence
from mlxmtp.decoding.stats import Round
from mlxmtp.decoding.verifier import Verifier, VerifyMode
from tests.scripted import keep_all


def reference(engine: Engine, prompt: list[int], count: int, prefill_rows: int = 2048) -> list[int]:
    """The greedy tokens of mlx-lm's own `generate_step`."""
    steps = generate_step(mx.array(prompt), engine.target.model, max_tokens=count, prefill_step_size=prefill_rows)
    return [token for token, _ in steps]


def prefilled(engine: Engine, prompt: list[int], depth: int, prefill_rows: int = 2048) -> Sequence:
    sequence = Sequence(engine.target, engine.mtp if depth else None)
    sequence.prefill(prompt, prefill_rows)
    return sequence


def rounds(
    engine: Engine,
    sequence: Sequence,
    count: int,
    depth: int,
    sampling: Sampling | None = None,
    keep: Keep = keep_all,
    verify: VerifyMode | None = None,
) -> Iterator[Round]:
    """Up to `count` tokens after a prefilled sequence; depth 0 decodes plainly."""
    law = Verifier(sampling or Sampling(), verify)
    if depth == 0:
        return decode_plainly(engine.target, sequence, law, keep, count)
    assert engine.mtp
    return speculate(engine.target, MTPChain(engine.mtp), sequence, law, FixedDepth(depth), keep, count)


def generated(engine: Engine, prompt: list[int], count: int, depth: int, prefill_rows: int = 2048) -> list[int]:
    """`count` greedy tokens."""
    sequence = prefilled(engine, prompt, depth, prefill_rows)
    return [token for one in rounds(engine, sequence, count, depth) for token in one.tokens]
