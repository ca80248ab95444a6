"""The filters by blocks, by bits and on few tokens, against a sort of the whole vocabulary in float64."""

from __future__ import annotations

import itertools
import math

import mlx.core as mx
import numpy as np
import pytest

from mlxmtp.decoding import verify as verify_module
from mlxmtp.decoding.sampler import Draft, Sampler, no_draft
from mlxmtp.decoding.sampling import Distribution, Sampling, distribution, fold, most_likely
from mlxmtp.decoding.verify import Acceptance, block, rejection
from tests.decoding.law_tables import Controlled, whole

ROWS = 6
WIDTHS = (5, 37, 403)  # no block divides the last
COUNTS = (0, 1, 2, 7, 31, 402, 10**9)
MASSES = (1e-50, 0.3, 0.95, 0.999, 1.0)
SHARES = (0.0, 0.05, 1.0)
NEAR = 1e-5  # float32 cannot tell a mass from top-p that is nearer


def logits_of(width: int) -> mx.array:
    """Rows that are random, flat, full of ties, half forbidden, with one token left, and sharp."""
    rng = np.random.default_rng(width)
    x = rng.normal(0, 2, (ROWS, width))
    x[1] = 0
    x[2] = np.round(x[2])
    x[3, rng.permutation(width)[: width // 2]] = -np.inf
    x[4, 1:] = -np.inf
    x[5] = np.round(x[5] * 20) / 2
    return mx.array(x.astype(np.float32))


def by_hand(row: np.ndarray, sampling: Sampling) -> tuple[np.ndarray, bool]:
    """The probabilities that top-p, min-p and top-k leave, in this order; False: a mass is too near to top-p.

    Top-p and min-p keep all of equals; top-k keeps the lower ids.
    """
    order = sorted(range(len(row)), key=lambda token: (-row[token], token))
    p = np.exp(row - row.max())
    p /= p.sum()
    above = np.array([p[row > row[token]].sum() for token in range(len(row))])
    sure = sampling.top_p in (1, 1e-50) or abs(above - sampling.top_p).min() > NEAR
    keep = ((above < sampling.top_p) | (sampling.top_p == 1)) & (
        row >= row.max() + math.log(max(sampling.min_p, 1e-300))
    )
    kept = [token for token in order if keep[token]][: sampling.top_k or None]
    law = np.zeros(len(row))
    law[kept] = p[kept] ** (1 / sampling.temperature)
    return law / law.sum(), sure


@pytest.mark.parametrize("width", WIDTHS)
def test_every_filter_keeps_what_a_sort_keeps(width: int) -> None:
    logits, compared = logits_of(width), 0
    for count, mass, share in itertools.product(COUNTS, MASSES, SHARES):
        sampling = Sampling(0.7, top_p=mass, min_p=share, top_k=count)
        found = np.array(whole(distribution(logits, sampling), width))
        for number, row in enumerate(np.array(logits, np.float64)):
            law, sure = by_hand(row, sampling)
            if sure:
                compared += 1
                assert ((found[number] > -np.inf) == (law > 0)).all(), (sampling, number)
                assert abs(np.exp(found[number]) - law).max() < 1e-5, (sampling, number)
    assert compared > 0.9 * len(COUNTS) * len(MASSES) * len(SHARES) * ROWS


def test_top_k_computes_on_few_tokens_and_many_on_the_vocabulary() -> None:
    logits = mx.random.normal((2, 3, 400), key=mx.random.key(0))
    for count, shape in ((20, (2, 3, 20)), (21, (2, 3, 400)), (0, (2, 3, 400))):
        law = distribution(logits, Sampling(1.0, top_k=count))
        assert (law.logs.shape, law.tokens is None) == (shape, count != 20), count


@pytest.mark.parametrize("width", [1, 3, 64, 1000, 4099])
def test_the_most_likely_are_those_of_a_sort_and_of_equals_the_lower_columns(width: int) -> None:
    rng = np.random.default_rng(1)
    for spread, count in itertools.product((0.0, 0.6, 50.0), sorted({1, min(3, width), min(40, width), width})):
        x = np.round(rng.normal(0, spread, (2, 3, width))).astype(np.float32)
        values, columns = most_likely(mx.array(x), count)
        expected = np.argsort(-x, axis=-1, kind="stable")[..., :count]
        assert (np.array(columns) == expected).all(), (spread, count)
        assert (np.array(values) == np.take_along_axis(x, expected, axis=-1)).all(), (spread, count)


FILTERS = (Sampling(0.8), Sampling(0.8, top_k=2), Sampling(0.8, top_k=9), Sampling(0.8, top_p=0.9, top_k=2))
BROKEN = {
    "NaN at the end": [*[0.0] * 15, math.nan],
    "NaN at the best": [math.nan, *[-3.0] * 15],
    "infinite": [*[0.0] * 9, math.inf, *[0.0] * 6],
    "nothing allowed": [-math.inf] * 16,
}


@pytest.mark.parametrize("sampling", [*FILTERS, Sampling(0.8, top_p=0.9)], ids=str)
def test_filters_do_not_hide_a_row_that_is_not_finite(sampling: Sampling) -> None:
    for (name, row), verify in itertools.product(BROKEN.items(), ("token", "seeded")):
        _, finite = Sampler(sampling, verify).verify(mx.array([[row]]), no_draft(), 0)  # type: ignore[arg-type]
        assert finite.tolist() == [False], (name, verify)


# -- verification on few tokens -------------------------------------------------------------------------------

B, K, V = 400, 5, 40


@pytest.mark.parametrize("verify", [rejection, block], ids=lambda verify: verify.__name__)
def test_few_tokens_are_verified_as_the_whole_vocabulary_is(monkeypatch: pytest.MonkeyPatch, verify: object) -> None:
    """The same drafts are accepted, and the token after them has the same law; supports of p and q differ."""
    logits = mx.random.normal((B, 4, V), key=mx.random.key(1))
    proposal = logits[:, :3] + 0.5 * mx.random.normal((B, 3, V), key=mx.random.key(2))
    p, q = (distribution(x, Sampling(1.0, top_k=K)) for x in (logits, proposal))
    assert p.tokens is not None
    assert q.tokens is not None
    chosen = mx.argmax(q.logs + mx.random.gumbel(q.logs.shape, key=mx.random.key(3)), axis=-1, keepdims=True)
    drafts = mx.take_along_axis(q.tokens, chosen, axis=-1)[..., 0]
    noted = Controlled(V)
    monkeypatch.setattr(verify_module, "draw", noted.draw)
    outcomes: list[tuple[Acceptance, mx.array]] = []
    for target, draft in ((p, q), (Distribution(whole(p, V)), Distribution(whole(q, V)))):
        found = verify(target, drafts, draft, mx.random.key(4))  # type: ignore[operator]
        outcomes.append((found, mx.exp(noted.law)))
    (few, law), (every, expected) = outcomes
    assert mx.array_equal(few.accepted, every.accepted)
    assert len(set(few.accepted.tolist())) == 4, "all outcomes"  # type: ignore[arg-type]
    assert mx.any(p.map(lambda rows: rows[:, :3]).of(drafts[..., None]) == -mx.inf), (
        "drafts that the target cannot give"
    )
    assert mx.abs(law - expected).max() < 1e-5


def test_a_seeded_token_is_the_argmax_over_the_vocabulary_under_noise_of_its_position() -> None:
    """The noise of a token is MLX's own Gumbel noise of a whole row: no filter changes it."""
    logits = mx.random.normal((1, 4, V), key=mx.random.key(5))
    for sampling in (Sampling(1.0, seed=9), Sampling(1.0, seed=9, top_k=6), Sampling(1.0, seed=9, top_p=0.8, top_k=20)):
        law, position = Sampler(sampling), 70
        p = whole(distribution(logits, sampling), V)
        noise = mx.stack([mx.random.gumbel((V,), key=fold(law._key, position + row)) for row in range(4)])
        expected = mx.argmax(p[0] + noise, axis=-1)
        acceptance, _ = law.verify(logits, Draft(expected[None, :3], []), position)
        assert (acceptance.accepted.item(), acceptance.token.item()) == (3, expected[3].item()), sampling
        drawn = [law.draw_draft(logits[:, row], position, [mx.zeros((1, 1))] * row)[0].item() for row in range(4)]
        assert drawn == expected.tolist(), sampling
