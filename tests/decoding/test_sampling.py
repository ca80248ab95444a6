"""The sampling chain against mlx-lm's own, and the noise that seeded decoding shares."""

import itertools
import math
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm import sample_utils

from mlxmtp.decoding.sampler import Sampler, no_draft
from mlxmtp.decoding.sampling import Sampling, distribution, gumbel, log_probs
from tests.decoding.law_tables import whole

ROWS, VOCABULARY = 64, 200
# We divide by the temperature, mlx-lm multiplies by its reciprocal: a rounding of numbers as large as 20 / 0.1.
TOLERANCE = 5e-5

Filters = dict[str, Any]
FILTERS: list[Filters] = [
    {},
    {"top_p": 0.05},
    {"top_p": 0.6},
    {"top_p": 0.999},
    {"min_p": 0.001},
    {"min_p": 0.3},
    {"min_p": 1.0},
    {"top_k": 1},
    {"top_k": 20},
    {"top_k": VOCABULARY - 1},
    {"top_p": 0.9, "min_p": 0.05},
    {"top_p": 0.5, "top_k": 3},
    {"min_p": 0.02, "top_k": 40},
    {"top_p": 0.95, "min_p": 0.01, "top_k": 20},
    {"top_p": 0.95, "min_p": 0.01, "top_k": 14},
]
TEMPERATURES = (0.1, 0.7, 1.0, 1.3, 10.0)


def random_logits(*, spread: float, seed: int = 0) -> mx.array:
    return spread * mx.random.normal((ROWS, VOCABULARY), key=mx.random.key(seed))


def law_of(logits: mx.array, sampling: Sampling) -> mx.array:
    """Our log-probabilities [..., V]."""
    return whole(distribution(logits, sampling), logits.shape[-1])


def mlx_lm_law(logits: mx.array, sampling: Sampling, monkeypatch: pytest.MonkeyPatch) -> mx.array:
    """What mlx-lm's sampler would draw from: the scaled logits that reach its categorical, normalised."""
    seen: list[mx.array] = []

    def draw(x: mx.array, temperature: float) -> mx.array:
        seen.append(log_probs(x * (1 / temperature)))
        return mx.argmax(x, axis=-1)

    monkeypatch.setattr(sample_utils, "categorical_sampling", draw)
    sampler = sample_utils.make_sampler(sampling.temperature, sampling.top_p, sampling.min_p, 1, sampling.top_k)
    sampler(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
    return seen[0]


@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_distribution_is_what_mlx_lm_draws_from(monkeypatch: pytest.MonkeyPatch, filters: Filters) -> None:
    for temperature, spread in itertools.product(TEMPERATURES, (0.3, 3.0)):
        sampling, logits = Sampling(temperature, **filters), random_logits(spread=spread)
        ours, theirs = law_of(logits, sampling), mlx_lm_law(logits, sampling, monkeypatch)
        assert mx.array_equal(mx.isinf(ours), mx.isinf(theirs)), "another set of tokens was kept"
        assert mx.abs(mx.exp(ours) - mx.exp(theirs)).max() < TOLERANCE
        assert mx.allclose(mx.exp(ours).sum(axis=-1), mx.ones(ROWS), atol=1e-5)


def test_the_order_of_the_filters_shows() -> None:
    """Another order than mlx-lm's, or filters after the temperature, would keep other tokens."""
    logits = random_logits(spread=3.0)
    ours = mx.isinf(law_of(logits, Sampling(2.0, top_p=0.6, top_k=20)))
    hot_first = mx.isinf(law_of(logits / 2, Sampling(1.0, top_p=0.6, top_k=20)))
    top_k_first = mx.where(mx.isinf(law_of(logits, Sampling(1.0, top_k=20))), -mx.inf, logits)
    assert not mx.array_equal(ours, hot_first)
    assert not mx.array_equal(ours, mx.isinf(law_of(top_k_first, Sampling(2.0, top_p=0.6))))


@pytest.mark.parametrize(
    ("sampling", "kept"),
    [
        (Sampling(1.0, top_k=3), 3),
        (Sampling(1.0, top_k=10**9), VOCABULARY),
        (Sampling(1.0, min_p=1.0), VOCABULARY),
        (Sampling(1.0, top_p=0.5), VOCABULARY),
    ],
    ids=str,
)
def test_ties(sampling: Sampling, kept: int) -> None:
    """Of equal tokens top-k keeps exactly k; the thresholds of top-p and min-p keep all of them, as mlx-lm does."""
    law = law_of(mx.zeros((2, VOCABULARY)), sampling)
    assert mx.isfinite(law).sum(axis=-1).tolist() == [kept, kept]


def test_a_cold_law_is_the_argmax() -> None:
    logits = random_logits(spread=3.0)
    law = law_of(logits, Sampling(1e-6, top_p=0.9))
    assert mx.array_equal(mx.argmax(law, axis=-1), mx.argmax(logits, axis=-1))
    assert mx.allclose(law.max(axis=-1), mx.zeros(ROWS), atol=1e-6)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_the_law_is_float32_whatever_the_model_is(dtype: mx.Dtype) -> None:
    logits = random_logits(spread=3.0).astype(dtype)
    sampling = Sampling(0.7, top_p=0.9, top_k=50)
    assert mx.array_equal(law_of(logits, sampling), law_of(logits.astype(mx.float32), sampling))
    assert law_of(logits, sampling).dtype == mx.float32


def test_an_unknown_verification_is_named() -> None:
    with pytest.raises(ValueError, match="verify is 'blok'; expected one of token, block, seeded"):
        Sampler(Sampling(1.0), "blok")  # type: ignore[arg-type]


def test_a_seed_means_reproducible_unless_told_otherwise() -> None:
    assert Sampler(Sampling(1.0)).mode == "block"
    assert Sampler(Sampling(1.0, seed=0)).mode == "seeded"
    assert Sampler(Sampling(1.0, seed=0), "block").mode == "block"


# -- greedy ---------------------------------------------------------------------------------------------------


def near_tie() -> mx.array:
    """bfloat16 logits whose argmax is token 1, and token 0 once they are normalised: the subtraction rounds."""
    logits = mx.array([[1.0, 1.0078125, -3.0] + [0.0] * 40], mx.bfloat16)
    assert mx.argmax(logits, axis=-1).item() == 1
    assert mx.argmax(logits - mx.logsumexp(logits, axis=-1, keepdims=True), axis=-1).item() == 0
    return logits


def test_greedy_takes_its_argmax_where_mlx_lm_does() -> None:
    verdict, sound = Sampler(Sampling()).verify(near_tie()[None], no_draft(), 0)
    assert verdict.token.tolist() == [0]
    assert sound.tolist() == [True]


# -- shared noise ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [[8], [1] * 8, [3, 5], [1, 6, 1]], ids=str)
def test_noise_depends_on_the_position_and_not_on_the_grouping(groups: list[int]) -> None:
    key, start = mx.random.key(5), 1000
    rows, at = [], start
    for count in groups:
        rows.append(gumbel(key, at, count, 50))
        at += count
    assert mx.array_equal(mx.concatenate(rows), gumbel(key, start, 8, 50))


@pytest.mark.parametrize("start", [0, 2**31 - 2, 2**32 - 3], ids=str)
def test_every_position_and_seed_has_noise_of_its_own(start: int) -> None:
    noise = mx.concatenate([gumbel(mx.random.key(seed), start, 3, 50) for seed in (1, 2)])
    rows = {tuple(row) for row in noise.tolist()}
    assert len(rows) == 6
    assert all(math.isfinite(x) for row in rows for x in row)


def test_positions_far_apart_share_no_noise() -> None:
    starts = [0, *(2**bits for bits in range(32))]
    assert len({tuple(gumbel(mx.random.key(1), start, 1, 50)[0].tolist()) for start in starts}) == len(starts)


def test_noise_is_gumbels() -> None:
    """Mean 0.5772, variance 1.6449 and P(g < 0) = 1/e, each within five standard errors of 200 000 values."""
    noise = gumbel(mx.random.key(3), 0, 100, 2000)
    count = noise.size
    assert abs(noise.mean().item() - 0.57722) < 5 * math.sqrt(1.64493 / count)
    assert abs(noise.var().item() - 1.64493) < 5 * math.sqrt((5.4 - 1) * 1.64493**2 / count)
    assert abs((noise < 0).mean().item() - math.exp(-1)) < 5 * math.sqrt(0.2325 / count)


@pytest.mark.parametrize("verify", ["token", "block", "seeded"])
def test_a_draw_belongs_to_its_position_and_step(verify: Any) -> None:
    """Seeded noise belongs to the position of the token alone: the next round's first draft repeats it."""
    logits, law = mx.zeros((1, 10**6)), Sampler(Sampling(1.0, seed=1), verify)
    behind = [mx.zeros((1, 1), mx.uint32)]
    at = (70, []), (70, []), (71, []), (70, behind)
    one, again, next_round, next_step = (law.draw_draft(logits, position, drafts)[0].item() for position, drafts in at)
    assert one == again != next_round
    assert one != next_step
    assert (next_round == next_step) is (verify == "seeded")
