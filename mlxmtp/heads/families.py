"""The registry: one line for each family."""

from mlxmtp.heads.family import Family
from mlxmtp.heads.gemma import GEMMA
from mlxmtp.heads.nextn import NEXTN
from mlxmtp.heads.qwen import QWEN

FAMILIES = (QWEN, GEMMA, NEXTN)
_registered: list[Family] = []  # by users of the library, the latest first


def register(family: Family) -> None:
    """Add a family; heads of its trunks are built by it, and no longer by one of the package."""
    _registered.insert(0, family)


def family_of(model_type: str) -> Family | None:
    """The family of a trunk's heads."""
    return next((family for family in (*_registered, *FAMILIES) if model_type in family.trunks), None)
