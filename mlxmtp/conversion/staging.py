"""Folders and files that are there whole or not at all, whatever stops the program in between."""

import errno
import fcntl
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
        CheckpointError: `dest` exists, or another process is making it.
    """
    check_absent(dest)
    stage = _beside(dest)
    stage.mkdir(parents=True, exist_ok=True)
    with alone_with(stage, dest):
        try:
            check_absent(dest)  # another process may just have made it
            _empty(stage)  # of a run that was killed
            with disk_told(dest):
                yield stage
            os.rename(stage, dest)
        except BaseException:
            shutil.rmtree(stage, ignore_errors=True)
            raise


@contextmanager
def staged_file(dest: Path) -> Iterator[Path]:
    """A file to write, which replaces `dest` when the block ends; an error leaves `dest` as it was.

    For one process at a time: see `alone_with`.
    """
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
def alone_with(path: Path, dest: Path) -> Iterator[None]:
    """Lock a file or folder that is there, to make `dest` by it; the lock goes with the process, even a killed one.

    Raises:
        CheckpointError: another process has it.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        if not _lock(handle) or not _is_still(path, handle):
            raise CheckpointError(f"another mlxmtp is writing {dest}; run the command again when it is done")
        yield
    finally:
        os.close(handle)


@contextmanager
def disk_told(dest: Path) -> Iterator[None]:
    """A full disk, said in a sentence."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OSError(f"the disk is full: no room for {dest}; make room and run the command again") from error


def check_absent(dest: Path) -> None:
    """Refuse to write what is there already, be it a link to nowhere."""
    if dest.exists() or dest.is_symlink():
        raise CheckpointError(f"{dest} exists already; remove it, or choose another name")


def check_outside(dest: Path, source: Path) -> None:
    """Refuse to write into the folder that is read, which stays as it is."""
    if dest.resolve().is_relative_to(source.resolve()):
        raise CheckpointError(f"{dest} is inside {source}, which stays as it is; choose a folder elsewhere")


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


def _empty(folder: Path) -> None:
    for left in folder.iterdir():
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left)
        else:
            left.unlink()


def _lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def _is_still(path: Path, handle: int) -> bool:
    """Whether a path means the open file; who had the lock before may have renamed or removed it."""
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False
