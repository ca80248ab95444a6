"""Greedy tokens with MTP equal mlx-lm's own, token for token, for every kind of checkpoint that can be loaded."""

from collections.abc import Callable

import numpy as np
import pytest

from mlxmtp import Engine, load
from tests.grids import cases, grid
from tests.running import assert_plain, plain_run, prefilled, remembered, rounds
from tests.scripted import KeepUntil, assert_same_state, snapshot

pytestmark = pytest.mark.exhaustive

# Kinds of random checkpoints: layout, dtype of the raw files, bits of a conversion (None: raw).
RANDOM = [
    ("qwen3_5", "float32", None),
    ("qwen3_5", "bfloat16", None),
    ("qwen3_5", "float16", None),
    ("qwen3_5", "bfloat16", 4),
    ("qwen3_5", "bfloat16", 8),
    ("qwen3_5_text", "bfloat16", None),
    ("qwen3_5_moe", "float32", None),
    ("qwen3_5_moe", "float32", 4),
    ("qwen3_5_moe", "bfloat16", 8),
    ("qwen3_5_moe_text", "float32", 8),
    ("qwen3_next", "float32", None),
    ("qwen3_next", "float32", 4),
    ("qwen3_next", "bfloat16", 8),
]
DEFAULT = (RANDOM[3], RANDOM[8], RANDOM[11])
"""Other layouts, dtypes and numbers of bits than the first."""
PREFILL_ROWS = 64
ROOM = 256
"""A cache of keys and values grows by this many rows."""
COUNT = 24


@pytest.fixture(scope="module")
def random_engine(request: pytest.FixtureRequest, raw_checkpoint: Callable, mlx_conversion: Callable) -> Engine:
    """With 16 tokens in the vocabulary a random head is right now and then, so that drafts are accepted too."""
    kind, dtype, bits = request.param
    folder = raw_checkpoint(kind, dtype=dtype, vocab=16)
    return load(mlx_conversion(folder, bits=bits, head_bits=bits) if bits else folder)


def prompt_of(engine: Engine, length: int, seed: int = 5) -> list[int]:
    vocabulary = engine.target.text_config["vocab_size"]
    return np.random.default_rng([seed, length]).integers(3, vocabulary, length).tolist()


PROMPTS = ((1, (1, 4)), (2, (2, 5)), (66, (6,)), (2 * ROOM - COUNT // 2, (3,)))


def by_default(random: tuple[str, str, int | None], prompt: tuple[int, tuple[int, ...]]) -> bool:
    return (random == RANDOM[0] and prompt[0] != 2) or (random in DEFAULT and prompt[0] == 66)


@pytest.mark.parametrize(
    ("random_engine", "prompt"), grid(RANDOM, PROMPTS, default=by_default), indirect=["random_engine"], ids=str
)
def test_random_checkpoints(random_engine: Engine, prompt: tuple[int, tuple[int, ...]]) -> None:
    """The longest prompt makes its caches grow, and so do the passes after it."""
    length, depths = prompt
    tokens = prompt_of(random_engine, length)
    plain = plain_run(random_engine, tokens, COUNT, PREFILL_ROWS)
    assert len(set(plain[0])) > 5, "a collapsed reference would prove little"
    for depth in depths:
        run = assert_plain(random_engine, tokens, plain, depth, PREFILL_ROWS)
        assert any(one.accepted for one in run), "the head is not at work"


@pytest.mark.parametrize(("count", "depths"), cases([(16, (1, 5)), (ROOM, (0, 2, 3, 6))], default=[(16, (1, 5))]))
def test_the_demo(count: int, depths: tuple[int, ...]) -> None:
    """The larger number goes on until the caches have grown."""
    demo = load()
    prompt = demo.tokenizer.encode("<|im_start|>user\nI'd like a large latte<|im_end|>\n<|im_start|>assistant\n")
    plain = plain_run(demo, prompt, count)
    for depth in depths:
        run = assert_plain(demo, prompt, plain, depth)
        assert sum(one.accepted for one in run) > 0.2 * sum(one.drafted for one in run) or not depth


BORDERS = ((1, 16), (16, 16), (17, 16), (18, 16), (100, 64), *((length, 16) for length in (2, 3, 15, 32, 33, 34)))


@pytest.mark.parametrize("borders", [BORDERS[:5], pytest.param(BORDERS[5:], marks=pytest.mark.exhaustive)], ids=str)
def test_prompts_across_chunk_borders(hybrid: Engine, borders: tuple[tuple[int, int], ...]) -> None:
    for length, rows in borders:
        prompt, depth = prompt_of(hybrid, length), 1 + length % 6
        plain = plain_run(hybrid, prompt, 6, rows)
        assert_plain(hybrid, prompt, plain, depth, rows)
        assert_plain(hybrid, prompt, plain, depth)  # read in one go


def test_after_a_stop_and_a_continuation(hybrid: Engine) -> None:
    """Stop inside a round, read a second prompt, go on: as if the whole had been read at once."""
    engine, expected_of = hybrid, remembered(hybrid)
    for depth, cuts in ((0, 1), (1, 8), (4, 5)):
        inside = 0
        for cut in range(1, cuts + 1):
            sequence = prefilled(engine, prompt_of(engine, 16), depth)
            first = list(rounds(engine, sequence, 100, depth, stop_check=KeepUntil(4 + cut)))
            assert sum(len(one.tokens) for one in first) == 4 + cut
            inside += len(first[-1].tokens) <= first[-1].accepted
            sequence.prefill(prompt_of(engine, 17), 5)
            before = list(sequence.tokens)
            whole = prefilled(engine, before, depth)
            assert_same_state(snapshot(sequence.cache), snapshot(whole.cache), f"depth {depth}, cut {cut}")
            assert_same_state(snapshot(sequence.head_cache), snapshot(whole.head_cache), f"depth {depth}, cut {cut}")
            second = [token for one in rounds(engine, sequence, 12, depth) for token in one.tokens]
            assert second == expected_of(before, 12), f"depth {depth}, cut {cut}"
        assert inside > 0 or not depth, "no stop was inside a round"
