"""The registry: one line for each family."""

from mlxmtp.heads.family import Family
from mlxmtp.heads.gemma import GEMMA
from mlxmtp.heads.nextn import NEXTN
from mlxmtp.heads.qwen import QWEN

FAMILIES = (QWEN, GEMMA, NEXTN)


def family_of(model_type: str) -> Family | None:
    """The family of a trunk's heads."""
    return next((family for family in FAMILIES if model_type in family.trunks), None)
