"""mlx-lm's models as targets of speculative decoding."""

from mlxmtp.targets.loading import (
    TEXT_ONLY,
    check_architecture,
    impossible_count,
    load_target,
    materialise,
    stack_experts,
)
from mlxmtp.targets.passes import Pass, PassListener
from mlxmtp.targets.patches.latent import LatentAttention, has_latents
from mlxmtp.targets.recent import RecentKVCache
from mlxmtp.targets.rollback import Cache
from mlxmtp.targets.shared_kv import SharedKVCache
from mlxmtp.targets.shared_pass import first_leaf, share_attention, shared_cache
from mlxmtp.targets.sharing import why_not_shared
from mlxmtp.targets.states import (
    CacheState,
    can_snapshot,
    detach,
    expected_bytes,
    is_trimmable,
    leaf_caches,
    restore,
    snapshot,
)
from mlxmtp.targets.target import HiddenSide, Target, check_ids, matrix_rows, repeat_last

__all__ = [
    "TEXT_ONLY",
    "Cache",
    "CacheState",
    "HiddenSide",
    "LatentAttention",
    "Pass",
    "PassListener",
    "RecentKVCache",
    "SharedKVCache",
    "Target",
    "can_snapshot",
    "check_architecture",
    "check_ids",
    "detach",
    "expected_bytes",
    "first_leaf",
    "has_latents",
    "impossible_count",
    "is_trimmable",
    "leaf_caches",
    "load_target",
    "materialise",
    "matrix_rows",
    "repeat_last",
    "restore",
    "share_attention",
    "shared_cache",
    "snapshot",
    "stack_experts",
    "why_not_shared",
]
