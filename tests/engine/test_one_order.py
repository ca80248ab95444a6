"""Which reading of a prompt changes bits on this backend: that of tokens alone, by two sums and nothing else."""

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest
from mlx_lm.models.cache import make_prompt_cache

from mlxmtp.targets.patches import window
from tests.engine.kinds import find, words
from tests.engine.one_order import ORDERED, STEPS, attention_of_whole_numbers, read_by_latents
from tests.grids import cases

COUNT = 50
"""Tokens; the window has 32, and so many latents are selected."""
CUTS = {"halves": [25, 25], "sevens": [7] * 6 + [8], "pairs": [2] * 25}
ALONE = {"all": [1] * 50, "an answer": [40] + [1] * 10, "an answer, then a prompt": [30] + [1] * 10 + [10]}


@pytest.mark.exact
@pytest.mark.parametrize("kind", cases(ORDERED, default=("gemma4",)))
def test_the_bits_of_a_prompt(kind: str, raw_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    engine = find(kind, raw_checkpoint)
    model, tokens = engine.target.model, mx.array([words(engine, COUNT)])

    def law(lengths: list[int]) -> mx.array:
        """Log-probabilities of mlx-lm's model that reads the tokens in passes of these lengths."""
        cache, ends = make_prompt_cache(model), [sum(lengths[: i + 1]) for i in range(len(lengths))]
        passes = [model(tokens[:, end - n : end], cache=cache)[0] for end, n in zip(ends, lengths, strict=True)]
        logits = mx.concatenate(passes).astype(mx.float32)
        return logits - mx.logsumexp(logits, axis=-1, keepdims=True)

    together = law([COUNT])
    for name, lengths in CUTS.items():
        assert mx.array_equal(law(lengths), together), name
    for name, lengths in ALONE.items():
        assert not mx.array_equal(law(lengths), together), name
    monkeypatch.setattr(window, "_attention", attention_of_whole_numbers)
    read_by_latents(engine.target)
    in_one_order = law([COUNT])
    for name, lengths in (CUTS | ALONE).items():
        assert mx.array_equal(law(lengths), in_one_order), name


def test_the_attention_of_whole_numbers_is_attention() -> None:
    """Within what is rounded: 30 weights and as many values, and twice 16 products of a score."""
    mx.random.seed(0)
    queries, keys, values = (mx.random.uniform(-1, 1, (1, heads, 30, 16)) for heads in (4, 2, 2))
    for mask in (None, "causal", mx.random.uniform(shape=(30, 30)) < 0.5):
        expected = mx.fast.scaled_dot_product_attention(queries, keys, values, scale=0.5, mask=mask)
        found = attention_of_whole_numbers(queries, keys, values, scale=0.5, mask=mask)
        assert float(mx.abs(found - expected).max()) < (30 + 1 + 2 * 16 * 0.5) / STEPS, mask
