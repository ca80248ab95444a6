"""Sliding windows: a pass over several rows is as many one-row passes of mlx-lm's own cache, bit for bit, taken back to
any row or not; everything else is mlx-lm's cache itself."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from mlx_lm.models.cache import KVCache, RotatingKVCache

from mlxmtp.checkpoints import open_checkpoint
from mlxmtp.targets import Target, load_target
from mlxmtp.targets.patches.window import WindowCache
from tests.grids import cases, grid
from tests.scripted import assert_same_state, snapshot

WINDOW = 8
MODELS = [("E2B", "float32"), ("31B", "bfloat16")]
# how many rows a prefill has read, and how many single ones after it: they begin to overwrite each other
STARTS = [(0, 0), (WINDOW - 1, 0), (WINDOW, 0), (WINDOW + 1, 0), (2 * WINDOW + 3, 0), (0, WINDOW + 3), (5, 6), (20, 3)]
TOKENS = np.random.default_rng(0).integers(3, 288, 80).tolist()

Checkpoints = Callable[..., Path]


@dataclass(frozen=True)
class Models:
    """A target, and the same weights in a model of mlx-lm's that nothing was taught."""

    target: Target
    stock: Any
    _started: dict[tuple[int, int, bool], list[Any]] = field(default_factory=dict)

    def start(self, prefill: int, singles: int, *, stock: bool = False) -> list[Any]:
        """A cache that has read that many rows."""
        key = prefill, singles, stock
        if key not in self._started:
            cache = self.stock.make_cache() if stock else self.target.make_cache()
            feed = self.one_by_one if stock else lambda tokens, cache: [self.forward([t], cache) for t in tokens]
            if prefill:
                self.stock(mx.array([TOKENS[:prefill]]), cache) if stock else self.forward(TOKENS[:prefill], cache)
            feed(TOKENS[prefill : prefill + singles], cache)
            self._started[key] = cache
        return deepcopy(self._started[key])

    def one_by_one(self, tokens: list[int], cache: list[Any]) -> list[mx.array]:
        """Each row's logits, by mlx-lm."""
        return [self.stock(mx.array([[token]]), cache) for token in tokens]

    def forward(self, tokens: list[int], cache: list[Any]) -> mx.array:
        return self.target.forward(mx.array([tokens]), cache)[0]


CORNERS = ((0, 0), (WINDOW - 1, 0), (0, WINDOW + 3), (20, 3))
WHOLE = grid(MODELS, STARTS, default=lambda model, start: start in (CORNERS if model == MODELS[0] else CORNERS[-1:]))
"""By default: of one model, windows that are empty, filled by the pass, and filled before; of the other, the last."""


@pytest.fixture(scope="module", params=MODELS, ids="-".join)
def models(request: pytest.FixtureRequest, gemma_checkpoint: Checkpoints) -> Models:
    style, dtype = request.param
    folder = gemma_checkpoint(style=style, dtype=dtype, window=WINDOW)
    stock, _ = mlx_lm.utils.load_model(folder)
    return Models(load_target(open_checkpoint(folder)), stock)


def test_the_models_have_both_kinds_of_cache(models: Models) -> None:
    assert {type(layer) for layer in models.target.make_cache()} == {KVCache, WindowCache}
    assert models.target.reversible


@pytest.mark.parametrize(("models", "start"), WHOLE, indirect=["models"], ids=str)
def test_a_pass_is_taken_back_to_any_row(models: Models, start: tuple[int, int]) -> None:
    first, cache = sum(start), models.start(*start, stock=True)
    fed = TOKENS[first : first + WINDOW + 3]
    logits, states = [], [snapshot(cache)]
    for token in fed:
        logits += models.one_by_one([token], cache)
        states.append(snapshot(cache))
    for rows in range(1, len(fed) + 1):
        expected = mx.concatenate(logits[:rows], axis=1)
        for kept in range(rows + 1):
            cache = models.start(*start)
            opened = models.target.open(mx.array([fed[:rows]]), cache)
            assert mx.array_equal(opened.logits, expected), (rows, kept)
            opened.commit(kept)
            assert_same_state(snapshot(cache), states[kept], (rows, kept))


@pytest.mark.parametrize("kept", cases([0, 1, 3, 5], (0, 3)))
@pytest.mark.parametrize(("models", "start"), WHOLE, indirect=["models"], ids=str)
def test_decoding_goes_on_from_a_commit(models: Models, start: tuple[int, int], kept: int) -> None:
    """The rows are not only equal but used: by a second pass, a single row, and a prompt that is no transaction."""
    first = sum(start)
    fed, after, prompt = TOKENS[first : first + 5], [7, 150, 21, 33], TOKENS[40:60]
    cache, stock = models.start(*start), models.start(*start, stock=True)
    models.target.open(mx.array([fed]), cache).commit(kept)
    models.one_by_one(fed[:kept], stock)
    opened = models.target.open(mx.array([[*after[:3], 9]]), cache)
    opened.commit(3)
    assert mx.array_equal(opened.logits[:, :3], mx.concatenate(models.one_by_one(after[:3], stock), axis=1))
    assert mx.array_equal(models.forward(after[3:], cache), models.one_by_one(after[3:], stock)[0])
    assert_same_state(snapshot(cache), snapshot(stock))
    read = models.forward(prompt, cache)
    assert mx.array_equal(read, models.stock(mx.array([prompt]), stock))
    assert_same_state(snapshot(cache), snapshot(stock))
    if read.dtype == mx.float32:  # a fresh run sums the keys of a ring in another order
        whole = TOKENS[:first] + fed[:kept] + after + prompt
        assert float(mx.abs(read - models.forward(whole, models.target.make_cache())[:, -20:]).max()) < 1e-4


def test_a_row_queued_ahead_is_taken_back(models: Models) -> None:
    """Plain decoding opens the next row before the one under way has been read; wherever the window ends."""
    cache, stock = models.target.make_cache(), models.stock.make_cache()
    for token in TOKENS[: 2 * WINDOW + 3]:
        models.target.open(mx.array([[99]]), cache).commit(0)
        opened = models.target.open(mx.array([[token]]), cache)
        assert mx.array_equal(opened.logits, models.one_by_one([token], stock)[0])
        opened.commit(1)
        assert_same_state(snapshot(cache), snapshot(stock))


def test_prefill_is_mlx_lms(models: Models) -> None:
    """In chunks of any length; the buffers too, to the last bit."""
    cache, stock, read = models.target.make_cache(), models.stock.make_cache(), 0
    for rows in (5, 1, 9, 8, 1, 1, 17, 3, 7, 1, 20):
        chunk = mx.array([TOKENS[read : read + rows]])
        assert mx.array_equal(models.target.forward(chunk, cache)[0], models.stock(chunk, stock))
        for one, other in zip(cache, stock, strict=True):
            assert one.offset == other.offset == read + rows
            assert_same_state([one.keys, one.values], [other.keys, other.values])
        read += rows


def test_an_interrupted_pass_leaves_nothing_open(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the next prefill would make a ring for every row."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    cache = models.start(5, 6)
    with monkeypatch.context() as patch:
        patch.setattr(models.target, "forward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            models.target.open(mx.array([[3, 4]]), cache)
    stock = models.start(5, 6, stock=True)
    assert mx.array_equal(models.forward([3, 4, 5], cache), models.stock(mx.array([[3, 4, 5]]), stock))


# -- the cache alone


def values(rows: int, *, heads: int = 2, width: int = 4, seed: int = 0) -> tuple[mx.array, mx.array]:
    """Keys and values of that many rows."""
    both = mx.random.normal((2, 1, heads, rows, width), key=mx.random.key(seed))
    return both[0], both[1]


@pytest.mark.parametrize(
    ("keep", "start", "rows"),
    grid(
        [0, 1, 3],
        STARTS,
        [2, 5, WINDOW + 3],
        default=lambda keep, start, rows: keep == 3 and rows != 5 and start in CORNERS,
    ),
    ids=str,
)
def test_a_cache_that_keeps_its_first_rows(keep: int, start: tuple[int, int], rows: int) -> None:
    """No model that has an assistant does so; mlx-lm's cache can. Each row's ring is what it would find alone."""

    def started(cache: RotatingKVCache) -> RotatingKVCache:
        keys, vals = values(sum(start) + 1)
        for first, count in [(0, start[0]), *((start[0] + i, 1) for i in range(start[1]))]:
            if count:
                cache.update_and_fetch(keys[:, :, first : first + count], vals[:, :, first : first + count])
        return cache

    keys, vals = values(rows, seed=1)
    stock = started(RotatingKVCache(WINDOW, keep))
    states, found = [snapshot([stock])], []
    for row in range(rows):
        found.append(stock.update_and_fetch(keys[:, :, row : row + 1], vals[:, :, row : row + 1]))
        found[-1] = [mx.array(part) for part in found[-1]]  # the next row is written into the same buffer
        states.append(snapshot([stock]))
    for kept in range(rows + 1):
        cache = started(WindowCache.like(RotatingKVCache(WINDOW, keep)))
        assert cache.keep == keep
        cache.in_pass = True
        mask = cache.make_mask(rows, WINDOW)
        rings = cache.update_and_fetch(keys, vals)
        if sum(start) + rows > WINDOW:
            for row, expected in enumerate(found):
                filled = mx.arange(WINDOW) >= 0 if mask is None else mask[row, 0, 0]
                slots = mx.array([slot for slot, there in enumerate(filled.tolist()) if there])
                assert_same_state([ring[row : row + 1][:, :, slots] for ring in rings], list(expected), row)
        cache.commit(kept, of=rows)
        cache.in_pass = False
        assert_same_state(snapshot([cache]), states[kept], kept)


def test_no_ring_outlives_its_pass() -> None:
    """A row's ring is as large as the window: of five, the one that is kept must not keep the others alive."""
    window, heads, width = 256, 4, 32
    ring = window * heads * width * 4
    keys, vals = values(window + 9, heads=heads, width=width)
    mx.eval(keys, vals)
    before = mx.get_active_memory()
    cache = WindowCache(window)
    for row in range(window + 1):
        cache.update_and_fetch(keys[:, :, row : row + 1], vals[:, :, row : row + 1])
    for kept in (0, 2, 5):
        cache.in_pass = True
        rings = cache.update_and_fetch(keys[:, :, window + 1 : window + 6], vals[:, :, window + 1 : window + 6])
        mx.eval(rings)
        assert [part.shape[0] for part in rings] == [5, 5]
        del rings
        cache.commit(kept, of=5)
        mx.eval(cache.keys, cache.values)
        arrays = [part for part in vars(cache).values() if not isinstance(part, int | bool | list)]
        assert {id(part) for part in arrays} == {id(cache.keys), id(cache.values)}
        assert mx.get_active_memory() - before < 2.5 * ring
