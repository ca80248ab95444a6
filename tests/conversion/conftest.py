"""The Hub of the checkpoint tests."""

from tests.checkpoints.conftest import hub

__all__ = ["hub"]
