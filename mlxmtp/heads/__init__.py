"""MTP heads: one module for each family, found by the tensors that are there."""

from mlxmtp.heads.head import Head
from mlxmtp.heads.loading import NoHeadError, load_head

__all__ = ["Head", "NoHeadError", "load_head"]
