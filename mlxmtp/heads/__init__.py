"""MTP heads: one module per family, found by the names of a checkpoint's tensors."""

from mlxmtp.heads.check import SelfCheck, self_check
from mlxmtp.heads.families import family_of, register
from mlxmtp.heads.family import Family
from mlxmtp.heads.head import Convention, Head, Recursion
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
from mlxmtp.heads.narrowed import DraftVocabulary, NarrowedLogits, narrowed_logits

__all__ = [
    "Convention",
    "DraftVocabulary",
    "Family",
    "Head",
    "HeadSource",
    "NarrowedLogits",
    "NoHeadError",
    "Recursion",
    "SelfCheck",
    "build_head",
    "download_head",
    "family_of",
    "load_head",
    "narrowed_logits",
    "norms_of",
    "register",
    "resolve_head",
    "self_check",
    "trunk_is_raw",
]
