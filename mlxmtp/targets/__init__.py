"""mlx-lm's models seen as targets of speculative decoding."""

from mlxmtp.targets.latent import LatentAttention, has_latents
from mlxmtp.targets.loading import TEXT_ONLY, check_architecture, load_target, materialise, stack_experts
from mlxmtp.targets.shared import SharedRows
from mlxmtp.targets.states import State, appends, can_be_kept, parts, put, state_of
from mlxmtp.targets.target import Cache, Pass, PassListener, Target, Where, matrix_rows

__all__ = [
    "TEXT_ONLY",
    "Cache",
    "LatentAttention",
    "Pass",
    "PassListener",
    "SharedRows",
    "State",
    "Target",
    "Where",
    "appends",
    "can_be_kept",
    "check_architecture",
    "has_latents",
    "load_target",
    "materialise",
    "matrix_rows",
    "parts",
    "put",
    "stack_experts",
    "state_of",
]
