"""mlx-lm's models seen as targets of speculative decoding."""

from mlxmtp.targets.loading import load_target, materialise, stack_experts
from mlxmtp.targets.target import Cache, Pass, Target

__all__ = ["Cache", "Pass", "Target", "load_target", "materialise", "stack_experts"]
