"""Files to arrays: which tensors a folder or a Hub repo holds, and in which format."""

from mlxmtp.checkpoints.resolve import read_config, resolve
from mlxmtp.checkpoints.tensors import TensorInfo, list_tensors

__all__ = ["TensorInfo", "list_tensors", "read_config", "resolve"]
