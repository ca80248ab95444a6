"""Tiny random checkpoints in the layouts that real ones are published in.

`raw_checkpoint` writes what Hugging Face holds, `mlx_conversion` what an MLX conversion of it looks like.
Needs numpy, mlx and mlx-lm only. Every tensor's values depend on the seed and its own name alone, so two
checkpoints that differ in layout, head or number of shards hold the same numbers.

Greedy decoding from these weights is varied and never meets an end token. A random head agrees with its trunk by
chance only: `vocab=8` gives an acceptance of about 0.2, the default vocabulary next to none.

MoE models run on MLX's CPU backend in float32 or quantised only (`gather_mm` knows nothing else there).
"""

from tests.tiny.conversion import mlx_conversion, stack_experts
from tests.tiny.files import load_weights, save_weights, write_json
from tests.tiny.fp8 import Scales, fp8_twins
from tests.tiny.gemma import GemmaKind, GemmaSizes, Style, assistant, gemma_checkpoint
from tests.tiny.hybrid import HYBRID_KINDS, HybridKind, HybridSizes, hybrid_checkpoint, hybrid_config, hybrid_sizes
from tests.tiny.layers import LAYER_KINDS, LAYER_SIZES, WINDOW, layer_checkpoint
from tests.tiny.models import KINDS, Kind, Sizes, config, is_moe
from tests.tiny.nextn import NEXTN_KINDS, NextNKind, NextNSizes, nextn_checkpoint, nextn_config
from tests.tiny.packing import MODES, drafter, nextn_drafter, pack
from tests.tiny.raw import Arrays, Experts, raw_checkpoint, tensors
from tests.tiny.several import SEVERAL_KINDS, SeveralKind, SeveralSizes, several_checkpoint
from tests.tiny.tokenizer import EOS, SPECIAL, tokenizer

__all__ = [
    "EOS",
    "HYBRID_KINDS",
    "KINDS",
    "LAYER_KINDS",
    "LAYER_SIZES",
    "MODES",
    "NEXTN_KINDS",
    "SEVERAL_KINDS",
    "SPECIAL",
    "WINDOW",
    "Arrays",
    "Experts",
    "GemmaKind",
    "GemmaSizes",
    "HybridKind",
    "HybridSizes",
    "Kind",
    "NextNKind",
    "NextNSizes",
    "Scales",
    "SeveralKind",
    "SeveralSizes",
    "Sizes",
    "Style",
    "assistant",
    "config",
    "drafter",
    "fp8_twins",
    "gemma_checkpoint",
    "hybrid_checkpoint",
    "hybrid_config",
    "hybrid_sizes",
    "is_moe",
    "layer_checkpoint",
    "load_weights",
    "mlx_conversion",
    "nextn_checkpoint",
    "nextn_config",
    "nextn_drafter",
    "pack",
    "raw_checkpoint",
    "save_weights",
    "several_checkpoint",
    "stack_experts",
    "tensors",
    "tokenizer",
    "write_json",
]
