"""One of two ranks whose decisions travel through MLX's group, as those of MPI do; asserts what it sees.

python -m tests.ranks.collective RANK SETUP
"""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext

import pytest

from mlxmtp.errors import CheckpointError, OptionError
from mlxmtp.ranks import OutOfStepError
from mlxmtp.ranks.join import connect
from mlxmtp.ranks.mpi import CollectiveRanks


def main(rank: str, setup: str) -> None:
    ranks = CollectiveRanks(int(rank), 2, "", connect(int(rank), "ring", *json.loads(setup)))
    for value in (None, 7, ["open", {"prompt": [1, 2], "opening": "ä"}], "x" * 100_000):
        assert ranks.agree(value if ranks.leads else None) == value
    assert ranks.together(lambda: rank) == rank
    with pytest.raises((CheckpointError, OptionError), match="^wrong$" if rank == "1" else "^rank 1: wrong$"):
        ranks.together(lambda: fail() if rank == "1" else None)
    ranks.note([3] if ranks.leads else [4])
    with nullcontext() if ranks.leads else pytest.raises(OutOfStepError):
        ranks.agree(1)


def fail() -> None:
    raise OptionError("wrong")


if __name__ == "__main__":
    main(*sys.argv[1:])
