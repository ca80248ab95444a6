"""Files to arrays: which tensors a folder or a Hub repo holds, and in which format."""

from mlxmtp.checkpoints.checkpoint import Checkpoint, open_checkpoint
from mlxmtp.checkpoints.tensors import SIDE_CAR, TensorInfo, list_tensors

__all__ = ["SIDE_CAR", "Checkpoint", "TensorInfo", "list_tensors", "open_checkpoint"]
