"""mlx-lm's models seen as targets of speculative decoding."""

from mlxmtp.targets.loading import check_architecture, load_target, materialise, stack_experts
from mlxmtp.targets.target import Cache, Pass, Target, matrix_rows

__all__ = [
    "Cache",
    "Pass",
    "Target",
    "check_architecture",
    "load_target",
    "materialise",
    "matrix_rows",
    "stack_experts",
]
