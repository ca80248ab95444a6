"""MTP heads: one module for each family, found by the tensors that are there."""

from mlxmtp.heads.check import SelfCheck, self_check
from mlxmtp.heads.head import Head
from mlxmtp.heads.loading import HeadSource, NoHeadError, build_head, fetched, judge, load_head, norms_of, trunk_is_raw

__all__ = [
    "Head",
    "HeadSource",
    "NoHeadError",
    "SelfCheck",
    "build_head",
    "fetched",
    "judge",
    "load_head",
    "norms_of",
    "self_check",
    "trunk_is_raw",
]
