"""Folders and files that are there whole or not at all, whatever stops the program in between."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mlxmtp.errors import CheckpointError
from mlxmtp.units import size

SPARE = 64 << 20
"""Bytes to leave free on a disk."""


@contextmanager
def staged_folder(dest: Path) -> Iterator[Path]:
    """A folder to fill, which takes the name `dest` when the block ends; an error leaves nothing behind.

    Raises:
        CheckpointError: `dest` exists.
    """
    if dest.exists() or dest.is_symlink():
        raise CheckpointError(f"{dest} exists already; remove it, or choose another name")
    stage = _beside(dest)
    shutil.rmtree(stage, ignore_errors=True)  # of a run that was killed
    stage.mkdir(parents=True)
    try:
        with disk_told(dest):
            yield stage
        os.rename(stage, dest)
    except BaseException:
        shutil.rmtree(stage, ignore_errors=True)
        raise


@contextmanager
def staged_file(dest: Path) -> Iterator[Path]:
    """A file to write, which replaces `dest` when the block ends; an error leaves `dest` as it was."""
    stage = _beside(dest)
    try:
        with disk_told(dest):
            yield stage
        os.replace(stage, dest)
    except BaseException:
        with suppress(OSError):
            stage.unlink()
        raise


@contextmanager
def disk_told(dest: Path) -> Iterator[None]:
    """A full disk, said in a sentence."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OSError(f"the disk is full; {dest} was not written: make room and run the command again") from error


def check_space(where: Path, needed: int) -> None:
    """Refuse to begin what the disk has no room for.

    Raises:
        CheckpointError: fewer than `needed` bytes (and a little more) are free where `where` is to be.
    """
    while not where.exists():
        where = where.absolute().parent
    free = shutil.disk_usage(where).free
    if free < needed + SPARE:
        raise CheckpointError(f"{size(needed)} to write, but {where} has {size(free)} free; make room first")


def _beside(dest: Path) -> Path:
    return dest.with_name(f".{dest.name}.partial")
