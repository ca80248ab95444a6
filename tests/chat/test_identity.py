"""Greedy tokens with MTP equal mlx-lm's own, token for token, for every kind of checkpoint that can be loaded."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mlxmtp import Engine, load
from mlxmtp.decoding.loop import Kept
from tests.running import generated, prefilled, reference, rounds

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
TRAINED = ["tiny-tools-qwen3_5-mtp", "tiny-qwen3_5-mtp", "demo"]
PREFILL_ROWS = 64


@pytest.fixture(scope="module", params=RANDOM, ids=lambda p: "-".join(str(part) for part in p if part))
def random_engine(request: pytest.FixtureRequest, raw_checkpoint: Callable, mlx_conversion: Callable) -> Engine:
    """With 16 tokens in the vocabulary a random head is right now and then, so that drafts are accepted too."""
    kind, dtype, bits = request.param
    folder = raw_checkpoint(kind, dtype=dtype, vocab=16)
    return load(mlx_conversion(folder, bits=bits, head_bits=bits) if bits else folder)


@pytest.fixture(scope="module", params=TRAINED)
def trained_engine(request: pytest.FixtureRequest, shared_checkpoint: Callable[[str], Path]) -> Engine:
    return load() if request.param == "demo" else load(shared_checkpoint(request.param))


def prompt_of(engine: Engine, length: int, seed: int = 0) -> list[int]:
    vocabulary = engine.target.text_config["vocab_size"]
    return np.random.default_rng([seed, length]).integers(3, vocabulary, length).tolist()


@pytest.mark.parametrize(("length", "depths"), [(1, (1, 4)), (2, (2, 5)), (66, (3, 6)), (700, (3,))])
def test_random_checkpoints(random_engine: Engine, length: int, depths: tuple[int, ...]) -> None:
    prompt = prompt_of(random_engine, length)
    count = 250 if length == 1 else 100
    expected = reference(random_engine, prompt, count, PREFILL_ROWS)
    assert len(set(expected)) > 5, "a collapsed reference would prove little"
    for depth in depths:
        assert generated(random_engine, prompt, count, depth, PREFILL_ROWS) == expected, f"depth {depth}"


def test_trained_checkpoints(trained_engine: Engine) -> None:
    text = "<|im_start|>user\nI'd like a large latte<|im_end|>\n<|im_start|>assistant\n"
    prompt = trained_engine.tokenizer.encode(text)
    expected = reference(trained_engine, prompt, 250)
    for depth in range(7):
        assert generated(trained_engine, prompt, 250, depth) == expected, f"depth {depth}"


@pytest.mark.parametrize("length", [1, 2, 3, 63, 64, 65, 66, 128, 129, 130, 700])
def test_prompts_across_chunk_borders(trained_engine: Engine, length: int) -> None:
    text = Path(__file__).read_text() * 2
    prompt = trained_engine.tokenizer.encode(text)[:length]
    depth = 1 + length % 6
    expected = reference(trained_engine, prompt, 60, PREFILL_ROWS)
    assert generated(trained_engine, prompt, 60, depth, PREFILL_ROWS) == expected
    assert generated(trained_engine, prompt, 60, depth) == expected, "one-shot prefill differs from chunks"


@pytest.mark.parametrize("cut", range(1, 6))
@pytest.mark.parametrize("depth", [0, 1, 4])
def test_after_a_stop_and_a_continuation(trained_engine: Engine, depth: int, cut: int) -> None:
    """Stop inside a round, read a second prompt, go on: as if the whole had been read at once."""
    engine = trained_engine
    sequence = prefilled(engine, engine.tokenizer.encode("def add_one(x):\n"), depth)
    seen = 0

    def keep(tokens: list[int]) -> Kept:
        nonlocal seen
        seen += len(tokens)
        over = seen - 20 - cut
        return Kept(len(tokens), None) if over < 0 else Kept(len(tokens) - over, "stop")

    first = [token for one in rounds(engine, sequence, 100, depth, keep=keep) for token in one.tokens]
    assert len(first) == 20 + cut
    sequence.prefill(engine.tokenizer.encode("\n\ndef add_two(x):\n"), 5)
    before = list(sequence.tokens)
    second = [token for one in rounds(engine, sequence, 40, depth) for token in one.tokens]
    assert second == reference(engine, before, 40)


def test_the_head_is_at_work(trained_engine: Engine) -> None:
    """Guards the tests above: with a head that never agrees, they would prove identity of plain decoding only."""
    sequence = prefilled(trained_engine, trained_engine.tokenizer.encode("def add_one(x):\n"), 3)
    run = list(rounds(trained_engine, sequence, 100, 3))
    assert sum(one.accepted for one in run) > 0.2 * sum(one.drafted for one in run)
