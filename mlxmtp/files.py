"""Files that others wrote, read within bounds; files and folders that are written whole or not at all; locks."""

import errno
import fcntl
import glob
import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from platformdirs import user_data_path

from mlxmtp.errors import CheckpointError
from mlxmtp.units import size

PARTIAL = ".partial"
"""The last suffix of a file or folder that is being written; its name begins with a dot."""
SPARE_BYTES = 64 << 20
"""Bytes; `check_space` refuses a write that would leave less than this free on the disk."""
MAX_FILE_BYTES = 128 << 20
"""Bytes of a file that is read whole. The largest tokenizers have 40 MB; in memory, JSON takes 20 times as much."""
MAX_NESTING = 64
"""Levels of objects and lists in a JSON text. Deeper ones exhaust the stack of whatever walks through them."""


def data_folder() -> Path:
    """Return the folder where mlxmtp keeps what it makes, by the platform's convention."""
    return user_data_path("mlxmtp", appauthor=False)


# -- reading --------------------------------------------------------------------------------------------------


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading. A FIFO would block until somebody writes, a device may never end.

    Raises:
        OSError: it cannot be opened, or is not a regular file.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb")


def read_regular(path: Path, max_bytes: int = MAX_FILE_BYTES) -> bytes:
    """Return the content of a file.

    Raises:
        OSError: as `open_regular`, or it has more than `max_bytes`.
    """
    with open_regular(path) as stream:
        content = stream.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise OSError(errno.EFBIG, f"larger than {size(max_bytes)}", str(path))
    return content


def parse_json(text: bytes | str) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: it is not JSON, not UTF-8, or has more than `MAX_NESTING` levels.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(MAX_NESTING):
        inner = (node.values() if isinstance(node, dict) else node for node in level)
        level = [child for children in inner for child in children if isinstance(child, dict | list)]
    if level:
        raise ValueError(f"nested more than {MAX_NESTING} levels deep")
    return value


def read_json(path: Path, max_bytes: int = MAX_FILE_BYTES) -> Any:
    """Return the value in a JSON file.

    Raises:
        OSError: as `read_regular`. ValueError: as `parse_json`.
    """
    return parse_json(read_regular(path, max_bytes))


# -- files ----------------------------------------------------------------------------------------------------


def write_whole(path: Path, text: str) -> None:
    """Replace the content of a file with `text` (UTF-8) in one step; make its folder.

    Raises:
        OSError: the file cannot be written; its earlier content is still there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with staged_file(path) as stage:
        stage.write_text(text, encoding="utf-8")


@contextmanager
def staged_file(dest: Path, mode: int = 0o666) -> Iterator[Path]:
    """Yield the path of an empty file to write; it replaces `dest` when the block ends without an error.

    After an error `dest` is as it was, and the new file is gone. A file left by a killed process is removed.

    Args:
        dest: in a folder that exists.
        mode: permissions of the new file, before the umask.
    """
    remove_abandoned(dest.parent, f".{glob.escape(dest.name)}.*{PARTIAL.removeprefix('.')}")
    with unfinished_file(dest.parent, dest.name, mode) as stage:
        yield stage
        os.replace(stage, dest)


@contextmanager
def unfinished_file(folder: Path, name: str, mode: int = 0o666) -> Iterator[Path]:
    """Yield the path of a new file `.NAME.XXXXXXXX.partial`, locked until the block ends; then remove it.

    The block may rename the file; then it stays, under its new name.
    """
    stage, handle = _new_locked_file(folder, name, mode)
    try:
        yield stage
    finally:
        try:
            stage.unlink(missing_ok=True)
        except OSError:
            pass  # the lock goes all the same, so that `remove_abandoned` can remove it later
        finally:
            os.close(handle)


def remove_abandoned(folder: Path, pattern: str = f".*{PARTIAL}") -> None:
    """Remove the unfinished files of `folder` on which no process has a lock: their writers were killed."""
    for left in folder.glob(pattern):
        with suppress(OSError), open_regular(left) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink()


def _new_locked_file(folder: Path, name: str, mode: int) -> tuple[Path, int]:
    """Return the path of a new file and its descriptor, which holds the lock."""
    while True:
        stage = folder / f".{name}.{secrets.token_hex(4)}{PARTIAL}"
        handle = os.open(stage, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        if is_same_file(stage, handle):
            return stage, handle
        os.close(handle)  # another process removed it as abandoned, before it was locked


# -- folders --------------------------------------------------------------------------------------------------


@contextmanager
def staged_folder(dest: Path) -> Iterator[Path]:
    """Yield an empty folder to fill; it takes the name `dest` when the block ends without an error.

    After an error the new folder is gone. What a killed process left in it is removed first.

    Raises:
        CheckpointError: `dest` exists, or another process is making it.
    """
    check_absent(dest)
    stage = dest.with_name(f".{dest.name}{PARTIAL}")
    stage.mkdir(parents=True, exist_ok=True)
    with locked(stage, dest):
        try:
            check_absent(dest)  # another process may have made it since
            _empty(stage)
            with explain_full_disk(dest):
                yield stage
            os.rename(stage, dest)
        except BaseException:
            shutil.rmtree(stage, ignore_errors=True)
            raise


def _empty(folder: Path) -> None:
    for left in folder.iterdir():
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left)
        else:
            left.unlink()


# -- locks ----------------------------------------------------------------------------------------------------


@contextmanager
def locked(path: Path, dest: Path) -> Iterator[None]:
    """Hold the lock on `path`, a file or folder that exists, while the block writes `dest`.

    The system releases the lock when the process ends, also when it is killed.

    Raises:
        CheckpointError: another process holds the lock.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # never waits for a FIFO's writer
    try:
        # the earlier holder may have renamed or removed it
        if not try_lock(handle) or not is_same_file(path, handle):
            raise CheckpointError(f"another mlxmtp is writing {dest}; run the command again when it is done")
        yield
    finally:
        os.close(handle)


def try_lock(handle: int) -> bool:
    """Lock an open file until it is closed; return False if another process holds the lock.

    On a file system without locks nothing is locked, and the answer is True.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def is_same_file(path: Path, handle: int) -> bool:
    """Return whether `path` still names the open file `handle`."""
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False


# -- checks ---------------------------------------------------------------------------------------------------


def check_absent(dest: Path) -> None:
    """Refuse a destination that exists, also as a broken link.

    Raises:
        CheckpointError: it exists.
    """
    if dest.exists() or dest.is_symlink():
        raise CheckpointError(f"{dest} exists already; remove it, or choose another name")


def check_outside(dest: Path, source: Path) -> None:
    """Refuse a destination inside the folder that is read, which must not change.

    Raises:
        CheckpointError: it is inside.
    """
    if dest.resolve().is_relative_to(source.resolve()):
        raise CheckpointError(f"{dest} is inside {source}, which stays as it is; choose a folder elsewhere")


def check_space(where: Path, needed: int) -> None:
    """Refuse to write `needed` bytes to a disk that lacks the room.

    Args:
        where: a path on the disk; it need not exist.

    Raises:
        CheckpointError: fewer than `needed` + `SPARE_BYTES` bytes are free.
    """
    while not where.exists():
        where = where.absolute().parent
    free = shutil.disk_usage(where).free
    if free < needed + SPARE_BYTES:
        raise CheckpointError(f"{size(needed)} to write, but {where} has {size(free)} free; make room first")


@contextmanager
def explain_full_disk(dest: Path) -> Iterator[None]:
    """Turn the error of a full disk into a sentence that names `dest` and what to do.

    Raises:
        OSError: the disk is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OSError(f"the disk is full: no room for {dest}; make room and run the command again") from error
