from collections.abc import Callable
from pathlib import Path

import pytest

from mlxmtp import Engine
from tests.engine.kinds import find


@pytest.fixture(scope="module")
def hybrid(raw_checkpoint: Callable[..., Path]) -> Engine:
    """For what has little to do with the kind: the one whose states cannot go back by themselves."""
    return find("qwen3_5", raw_checkpoint)
