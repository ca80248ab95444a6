"""The families of heads, found by the model types of their trunks."""

from mlxmtp.heads.ernie import ERNIE
from mlxmtp.heads.exaone import EXAONE
from mlxmtp.heads.family import Family
from mlxmtp.heads.gemma import GEMMA
from mlxmtp.heads.kimi import KIMI
from mlxmtp.heads.ling import LING
from mlxmtp.heads.ling_linear import LING_LINEAR
from mlxmtp.heads.longcat import LONGCAT
from mlxmtp.heads.mellum import MELLUM
from mlxmtp.heads.mimo import MIMO
from mlxmtp.heads.mimo_v2 import MIMO_V2
from mlxmtp.heads.nemotron import NEMOTRON
from mlxmtp.heads.nextn import NEXTN
from mlxmtp.heads.qwen import QWEN
from mlxmtp.heads.step import STEP

FAMILIES = [QWEN, GEMMA, NEXTN, MIMO, EXAONE, ERNIE, MELLUM, STEP, MIMO_V2, NEMOTRON, LING_LINEAR, KIMI, LING, LONGCAT]
"""One entry per family, the first of a trunk wins; a new module of this package adds its family here."""


def register(family: Family) -> None:
    """Add a family from outside this package; it replaces the package's own family for its trunks.

    Heads that are loaded already stay as they are.
    """
    FAMILIES.insert(0, family)


def family_of(model_type: str) -> Family | None:
    """Return the family of the heads of trunks of a model type, or None."""
    return next((family for family in FAMILIES if model_type in family.trunks), None)
