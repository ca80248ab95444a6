"""Models with every kind of cache, and what users say to them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from mlxmtp import Engine, load

TRAINED = Path(__file__).parent.parent / "trained"
KINDS = ("qwen3_5", "gemma4", "glm4_moe", "deepseek_v32")
"""Recurrent states and rows; windows that wrap, read by an assistant; rows; latents that are chosen."""
PLENTY = 1 << 30


def find(kind: str, raw_checkpoint: Callable[..., Path]) -> Engine:
    """With 8 tokens in the vocabulary a random head is right now and then; the others are trained."""
    return load(raw_checkpoint(kind, dtype="float32", vocab=8) if kind == "qwen3_5" else TRAINED / kind)


def words(engine: Engine, count: int, seed: int = 0) -> list[int]:
    """What a user says: token ids."""
    vocabulary = engine.target.text_config["vocab_size"]
    return np.random.default_rng([seed, count]).integers(3, vocabulary, count).tolist()
