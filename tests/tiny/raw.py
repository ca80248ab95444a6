"""Random checkpoints in raw Hugging Face layout."""

import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tests.tiny.files import save_checkpoint, write_json
from tests.tiny.models import Kind, Sizes, config, head_shapes, trunk_shapes
from tests.tiny.tokenizer import EOS, SPECIAL, tokenizer

Experts = Literal["fused", "per_expert"]
Arrays = dict[str, np.ndarray]


def raw_checkpoint(
    folder: Path,
    kind: Kind,
    *,
    dtype: str = "bfloat16",
    seed: int = 0,
    head: bool = True,
    experts: Experts | None = None,
    head_experts: Experts | None = None,
    shards: int = 1,
    eos: int = EOS,
    **sizes: Any,
) -> Path:
    """Write a random checkpoint in raw Hugging Face layout, with a tokenizer; returns the folder.

    Args:
        folder: made where it does not exist.
        kind: the config's `model_type`.
        dtype: of every tensor: bfloat16, float16 or float32.
        seed: the same seed gives the same numbers in every layout.
        head: whether the `mtp.*` tensors are there (the config declares them either way, as real ones do).
        experts: how the trunk stores its experts; by default as the kind's releases do. mlx-lm 0.32.2 reads
            only that default (fused for `qwen3_5_moe*`, one by one for `qwen3_next`).
        head_experts: the same for the head, by default as `experts` (Qwen3.5's releases: fused trunk, head
            per expert; Qwen3.6's: both fused).
        shards: more than one writes an index as well.
        eos: the end token that the configs declare.
        sizes: fields of `Sizes`.
    """
    shape = Sizes(**sizes)
    arrays = tensors(kind, shape, seed=seed, head=head, experts=experts, head_experts=head_experts)
    save_checkpoint(folder, arrays, config(kind, shape, dtype, eos), dtype, shards=shards)
    write_json(folder / "generation_config.json", {"eos_token_id": eos})
    tokenizer(folder, shape.vocab)
    return folder


def tensors(
    kind: Kind,
    sizes: Sizes,
    *,
    seed: int = 0,
    head: bool = True,
    experts: Experts | None = None,
    head_experts: Experts | None = None,
) -> Arrays:
    """The checkpoint's arrays (float32) under their Hugging Face names; see `raw_checkpoint`."""
    experts = experts or ("per_expert" if kind == "qwen3_next" else "fused")
    trunk = {name: random_values(name, shape, seed) for name, shape in trunk_shapes(kind, sizes).items()}
    prefix = "model." if kind.endswith("_text") or kind == "qwen3_next" else "model.language_model."
    named = {name if name == "lm_head.weight" else prefix + name: a for name, a in trunk.items()}
    named = split_experts(named) if experts == "per_expert" else named
    if head:
        mtp = {name: random_values(name, shape, seed) for name, shape in head_shapes(kind, sizes).items()}
        named |= split_experts(mtp) if (head_experts or experts) == "per_expert" else mtp
    return named


def random_values(name: str, shape: tuple[int, ...], seed: int, norms: float = 0.0) -> np.ndarray:
    """Random values that keep activations near 1, memory long and logits neither flat nor sharp.

    `norms` is the mean of norm weights: 0 where they are stored without their offset of 1.
    """
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    if name.endswith("A_log"):
        values = np.log(rng.uniform(0.5, 4.0, shape))
    elif name.endswith("dt_bias"):
        values = rng.normal(-3.0, 1.0, shape)
    elif name.endswith("conv1d.weight"):
        values = rng.normal(0.0, 0.5, shape)
    elif name.endswith("bias"):
        values = rng.normal(0.0, 0.1, shape)
    elif len(shape) == 1:  # the gated norm of the delta net has no offset
        values = rng.normal(1.0 if name.endswith("linear_attn.norm.weight") else norms, 0.1, shape)
    elif name.endswith(("embed_tokens.weight", "embeddings.weight", "head.weight")):
        values = rng.normal(0.0, 0.25, shape)
        values[: len(SPECIAL)] *= 0.1  # greedy decoding never meets an end token by chance
    else:
        values = rng.normal(0.0, shape[-1] ** -0.5, shape)
    return values.astype(np.float32)


def split_experts(arrays: Arrays) -> Arrays:
    """Fused expert tensors as one `experts.{e}.{gate,up,down}_proj.weight` each."""
    out: Arrays = {}
    for name, values in arrays.items():
        base, _, leaf = name.rpartition(".")
        if leaf == "gate_up_proj":
            gates, ups = np.split(values, 2, axis=1)
            parts = {"gate_proj": gates, "up_proj": ups}
        elif leaf == "down_proj":
            parts = {"down_proj": values}
        else:
            out[name] = values
            continue
        out |= {f"{base}.{e}.{p}.weight": w for p, stack in parts.items() for e, w in enumerate(stack)}
    return out
