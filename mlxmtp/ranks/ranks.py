"""What the ranks of a model have in common: one order of decisions, made on rank 0, and a check that all follow."""

from __future__ import annotations

import json
import os
import sys
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, NoReturn, TypeVar
from zlib import crc32

from mlxmtp.errors import CheckpointError, MlxmtpError, in_one_line, is_out_of_memory

T = TypeVar("T")


class OutOfStepError(Exception):
    """This rank has other tokens than rank 0. Its process ends, and with it all others."""


class Ranks(ABC):
    """The ranks of a model, seen from one of them. All call the same methods in the same order.

    The decisions travel through pipes, not through MLX: a rank that waits for one takes no processor time, and does
    not wait for the pass that is being computed.

    Args:
        rank, size: this rank's number, from 0 on, and the number of ranks.
        description: as "2 ranks (ring)".
        group: MLX's group, over which the parts of the trunk are added up.
    """

    def __init__(self, rank: int, size: int, description: str, group: Any) -> None:
        self.rank, self.size, self.description, self.group = rank, size, description, group
        self._checksum = 0

    @property
    def leads(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def note(self, tokens: Iterable[int]) -> None:
        """Add numbers to this rank's checksum. They have to be the same on every rank."""
        self._checksum = crc32(json.dumps(list(tokens)).encode(), self._checksum)

    @abstractmethod
    def agree(self, value: Any = None) -> Any:
        """Return rank 0's value, plain data, on every rank.

        Raises:
            OutOfStepError: this rank's checksum is not that of rank 0.
        """

    def end(self, error: Exception) -> NoReturn:
        """End this process, and with it all ranks, because of an error that the others may not have."""
        if is_out_of_memory(error) or isinstance(error, MemoryError):
            print(f"rank {self.rank} is out of memory: {in_one_line(error)}", file=sys.stderr, flush=True)  # noqa: T201
        else:
            traceback.print_exception(error)
        os._exit(1)

    def together(self, action: Callable[[], T]) -> T:
        """Return what an action gives. If it fails on one rank it fails on all: none goes on to wait for it in vain.

        Raises:
            MlxmtpError: this rank's own error, or else a CheckpointError with that of another rank.
        """
        try:
            result = action()
        except MlxmtpError as error:
            self._first_error(str(error))
            raise
        if first := self._first_error(None):
            raise CheckpointError(first)
        return result

    @abstractmethod
    def _first_error(self, own: str | None) -> str | None:
        """Return the error of the first rank that has one, on every rank."""
