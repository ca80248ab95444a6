"""Models with every kind of cache, and prompts of random tokens."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from mlxmtp import Engine, load

TRAINED = Path(__file__).parent.parent / "trained"
KINDS = ("qwen3_5", "gemma4", "glm4_moe", "deepseek_v32")
"""Recurrent states and a KV cache; sliding windows with an assistant; a KV cache; sparse latents."""
EVERY = (*KINDS, "step3p5")
"""A head of several layers with windows too; its tests run only where all do."""
FEW = ("qwen3_5", "glm4_moe")
"""Caches that go back to snapshots only, and caches that can be cut anywhere: the kinds of the default run."""
PLENTY = 1 << 30


def folder_of(kind: str, raw_checkpoint: Callable[..., Path]) -> Path:
    """Return the folder of a random model of 8 tokens, whose drafts are accepted now and then, or of a trained one."""
    sizes = {"vocab": 8, "layers": 3, "interval": 3}
    return raw_checkpoint(kind, dtype="float32", **sizes) if kind == "qwen3_5" else TRAINED / kind


def find(kind: str, raw_checkpoint: Callable[..., Path]) -> Engine:
    """Return the model of `folder_of`."""
    return load(folder_of(kind, raw_checkpoint))


def words(engine: Engine, count: int, seed: int = 0) -> list[int]:
    """Return random token ids of a prompt."""
    vocabulary = engine.target.text_config["vocab_size"]
    return np.random.default_rng([seed, count]).integers(3, vocabulary, count).tolist()
