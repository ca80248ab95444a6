"""mlx-lm's models seen as targets of speculative decoding."""

from mlxmtp.targets.latent import LatentAttention, has_latents
from mlxmtp.targets.loading import TEXT_ONLY, check_architecture, load_target, materialise, stack_experts
from mlxmtp.targets.shared import SharedRows
from mlxmtp.targets.states import CacheState, can_snapshot, is_trimmable, leaf_caches, restore, snapshot
from mlxmtp.targets.target import Cache, Pass, PassListener, Target, Where, matrix_rows

__all__ = [
    "TEXT_ONLY",
    "Cache",
    "CacheState",
    "LatentAttention",
    "Pass",
    "PassListener",
    "SharedRows",
    "Target",
    "Where",
    "can_snapshot",
    "check_architecture",
    "has_latents",
    "is_trimmable",
    "leaf_caches",
    "load_target",
    "materialise",
    "matrix_rows",
    "restore",
    "snapshot",
    "stack_experts",
]
