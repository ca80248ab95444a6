"""MTP heads: one module for each family, found by the tensors that are there."""

from mlxmtp.heads.check import SelfCheck, self_check
from mlxmtp.heads.head import Head
from mlxmtp.heads.loading import (
    HeadSource,
    NoHeadError,
    build_head,
    download_head,
    load_head,
    norms_of,
    resolve_head,
    trunk_is_raw,
)

__all__ = [
    "Head",
    "HeadSource",
    "NoHeadError",
    "SelfCheck",
    "build_head",
    "download_head",
    "load_head",
    "norms_of",
    "resolve_head",
    "self_check",
    "trunk_is_raw",
]
