"""Checkpoint files to arrays and back: find tensors in a folder or a Hub repo, read and write their formats."""

from mlxmtp.checkpoints.checkpoint import (
    HEAD_FACTS,
    Checkpoint,
    check_tokenizer,
    open_checkpoint,
    stated_context,
    text_config,
)
from mlxmtp.checkpoints.fp8 import dequantise_fp8
from mlxmtp.checkpoints.head_files import HeadFiles, Norms, find_head
from mlxmtp.checkpoints.tensors import SIDECAR, TensorInfo, list_tensors

__all__ = [
    "HEAD_FACTS",
    "SIDECAR",
    "Checkpoint",
    "HeadFiles",
    "Norms",
    "TensorInfo",
    "check_tokenizer",
    "dequantise_fp8",
    "find_head",
    "list_tensors",
    "open_checkpoint",
    "stated_context",
    "text_config",
]
