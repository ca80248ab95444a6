"""Logits that are not finite: an error, and never a token."""

import math
from typing import Any

import mlx.core as mx
import pytest

from mlxmtp.decoding.depth import FixedDepth
from mlxmtp.decoding.loop import generate, never_stop
from mlxmtp.decoding.sampler import Sampler
from mlxmtp.decoding.sampling import Sampling
from mlxmtp.decoding.sequence import Sequence
from mlxmtp.errors import NumericsError
from tests.scripted import Depths, ScriptedDrafter, TableDrafter, TableTarget, random_table

VOCABULARY = 11
TABLE = random_table(VOCABULARY, seed=1, spread=2.0)


def spoiled(at: int, value: float) -> TableTarget:
    """A target whose logits after token `at` are not finite."""
    rows = mx.arange(VOCABULARY**2)[:, None] % VOCABULARY == at
    return TableTarget(mx.where(rows, value, TABLE))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0), Sampling(1.0, seed=3)], ids=str)
@pytest.mark.parametrize("depth", [None, 0, 3])
def test_logits_that_are_not_finite_are_an_error_and_never_a_token(
    depth: int | None, sampling: Sampling, value: float
) -> None:
    """The first pass is sound, so that plain decoding has the bad one queued already."""
    target = spoiled(at=5, value=value)
    sequence, seen = Sequence(target, None), []  # type: ignore[arg-type]
    sequence.prefill([3, 5])

    def keep(tokens: list[int]) -> Any:
        seen.append(tokens)
        return never_stop(tokens)

    law = Sampler(sampling)
    if depth is None:
        rounds = generate(target, None, sequence, law, FixedDepth(0), keep, 9)  # type: ignore[arg-type]
    else:
        drafter = TableDrafter(TABLE)
        rounds = generate(target, drafter, sequence, law, Depths(depth), keep, 9)  # type: ignore[arg-type]
    with pytest.raises(NumericsError, match="not finite"):
        next(rounds)
    assert not seen
    assert sequence.tokens == [3, 5]


def test_a_bad_row_behind_a_rejection_does_not_matter() -> None:
    """A scripted draft leads into the spoiled row; the target's own tokens do not."""
    honest = TableTarget(TABLE)
    first = Sequence(honest, None)  # type: ignore[arg-type]
    first.prefill([3, 4])
    plain = generate(honest, None, first, Sampler(Sampling()), FixedDepth(0), never_stop, 4)  # type: ignore[arg-type]
    truth = [3, 4, *(token for one in plain for token in one.tokens)]
    wrong = (truth[3] + 1) % VOCABULARY
    assert wrong not in truth
    target = spoiled(at=wrong, value=math.nan)
    sequence = Sequence(target, None)  # type: ignore[arg-type]
    sequence.prefill([3, 4])
    drafter = ScriptedDrafter(truth, [1], VOCABULARY)
    one = next(generate(target, drafter, sequence, Sampler(Sampling()), Depths(2), never_stop, 9))  # type: ignore[arg-type]
    assert list(one.tokens) == truth[2:4]
