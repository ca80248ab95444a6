"""Greedy tokens with MTP equal mlx-lm's own, token for token, for every kind of checkpoint that can be loaded."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mlxmtp import Engine, load
from tests.grids import cases
from tests.running import assert_plain, plain_run, prefilled, remembered, rounds
from tests.scripted import KeepUntil, assert_same_state, snapshot

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
PREFILL_ROWS = 64
ROOM = 256
"""A cache of keys and values grows by as many rows."""


@pytest.fixture(scope="module")
def random_engine(request: pytest.FixtureRequest, raw_checkpoint: Callable, mlx_conversion: Callable) -> Engine:
    """With 16 tokens in the vocabulary a random head is right now and then, so that drafts are accepted too."""
    kind, dtype, bits = request.param
    folder = raw_checkpoint(kind, dtype=dtype, vocab=16)
    return load(mlx_conversion(folder, bits=bits, head_bits=bits) if bits else folder)


@pytest.fixture(scope="module")
def trained_engine() -> Engine:
    return load()


@pytest.fixture(scope="module")
def expected_of(trained_engine: Engine) -> Callable[..., list[int]]:
    return remembered(trained_engine)


def prompt_of(engine: Engine, length: int, seed: int = 0) -> list[int]:
    vocabulary = engine.target.text_config["vocab_size"]
    return np.random.default_rng([seed, length]).integers(3, vocabulary, length).tolist()


@pytest.mark.parametrize(
    ("random_engine", "length", "depths"),
    [
        pytest.param(*case, marks=() if case[0] == RANDOM[0] or case[1] == 66 else pytest.mark.exhaustive)
        for case in (
            (random, *prompt)
            for random in RANDOM
            for prompt in ((1, (1, 4)), (2, (2, 5)), (66, (6,)), (2 * ROOM - 30, (3,)))
        )
    ],
    indirect=["random_engine"],
    ids=str,
)
def test_random_checkpoints(random_engine: Engine, length: int, depths: tuple[int, ...]) -> None:
    """The longest prompt makes its caches grow, and so do the passes after it."""
    prompt = prompt_of(random_engine, length)
    plain = plain_run(random_engine, prompt, 50, PREFILL_ROWS)
    assert len(set(plain[0])) > 5, "a collapsed reference would prove little"
    for depth in depths:
        run = assert_plain(random_engine, prompt, plain, depth, PREFILL_ROWS)
        assert any(one.accepted for one in run), "the head is not at work"


def test_the_demo(trained_engine: Engine) -> None:
    """One depth goes on until the caches have grown."""
    text = "<|im_start|>user\nI'd like a large latte<|im_end|>\n<|im_start|>assistant\n"
    prompt = trained_engine.tokenizer.encode(text)
    assert_plain(trained_engine, prompt, plain_run(trained_engine, prompt, ROOM), 3)
    plain = plain_run(trained_engine, prompt, 48)
    for depth in (0, 1, 2, 6):
        assert_plain(trained_engine, prompt, plain, depth)


BORDERS = [*((length, 16) for length in (1, 2, 3, 15, 16, 17, 18, 32, 33, 34)), (300, PREFILL_ROWS)]


@pytest.mark.parametrize(
    ("length", "rows"), cases(BORDERS, default=[(1, 16), (16, 16), (17, 16), (18, 16), BORDERS[-1]])
)
def test_prompts_across_chunk_borders(trained_engine: Engine, length: int, rows: int) -> None:
    text = Path(__file__).read_text()
    prompt = trained_engine.tokenizer.encode(text)[:length]
    assert len(prompt) == length
    depth = 1 + length % 6
    plain = plain_run(trained_engine, prompt, 12, rows)
    assert_plain(trained_engine, prompt, plain, depth, rows)
    assert_plain(trained_engine, prompt, plain, depth)  # read in one go


@pytest.mark.parametrize(("depth", "cuts"), [(0, 1), (1, 3), (4, 5)])
def test_after_a_stop_and_a_continuation(
    trained_engine: Engine, expected_of: Callable[..., list[int]], depth: int, cuts: int
) -> None:
    """Stop inside a round, read a second prompt, go on: as if the whole had been read at once."""
    engine, inside = trained_engine, 0
    for cut in range(1, cuts + 1):
        sequence = prefilled(engine, engine.tokenizer.encode("def add_one(x):\n"), depth)
        first = list(rounds(engine, sequence, 100, depth, stop_check=KeepUntil(12 + cut)))
        assert sum(len(one.tokens) for one in first) == 12 + cut
        inside += len(first[-1].tokens) <= first[-1].accepted
        sequence.prefill(engine.tokenizer.encode("\n\ndef add_two(x):\n"), 5)
        before = list(sequence.tokens)
        whole = prefilled(engine, before, depth)
        assert_same_state(snapshot(sequence.cache), snapshot(whole.cache), cut)
        assert_same_state(snapshot(sequence.head_cache), snapshot(whole.head_cache), cut)
        second = [token for one in rounds(engine, sequence, 24, depth) for token in one.tokens]
        assert second == expected_of(before, 24), cut
    assert inside > 0 or not depth, "no stop was inside a round"


def test_the_head_is_at_work(trained_engine: Engine) -> None:
    """Guards the tests above: with a head that never agrees, they would prove identity of plain decoding only."""
    sequence = prefilled(trained_engine, trained_engine.tokenizer.encode("def add_one(x):\n"), 3)
    run = list(rounds(trained_engine, sequence, 60, 3))
    assert sum(one.accepted for one in run) > 0.2 * sum(one.drafted for one in run)
