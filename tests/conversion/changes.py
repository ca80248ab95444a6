"""Changes that this process makes to files, seen by Python's audit events: one can fail, or be the process's last."""

import errno
import os
import sys
import threading
from pathlib import Path
from typing import Any, Self

_EVENTS = {"os.mkdir", "os.rename", "os.link", "os.symlink", "os.remove", "os.rmdir", "shutil.rmtree"}


class Killed(BaseException):
    """Stands for SIGKILL: after it, nothing of what the program does on its way out changes a file any more.

    Only that what it had not flushed yet is written all the same.
    """


class Changes:
    """Counts the changes below some folders while it is entered.

    Args:
        at: the one that goes wrong, from 0.
        how: by a full disk (OSError), by Ctrl-C (KeyboardInterrupt), or by the end of the process (Killed).
    """

    def __init__(self, *folders: Path, at: int, how: type[BaseException]) -> None:
        self._folders = tuple(f"{folder}/" for folder in folders)
        self._at = at
        self._how = how
        self._thread = threading.get_ident()
        self.seen: list[str] = []

    @property
    def reached(self) -> bool:
        return len(self.seen) > self._at

    def __enter__(self) -> Self:
        _install()
        _entered.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        _entered.remove(self)

    def notice(self, event: str, args: tuple[Any, ...]) -> None:
        if threading.get_ident() != self._thread:
            return
        if self.reached and self._how is Killed:
            raise Killed
        paths = [os.fspath(one) for one in args if isinstance(one, (str, os.PathLike))]
        if not any(f"{path}/".startswith(self._folders) for path in paths):
            return
        self.seen.append(f"{event} {paths}")
        if len(self.seen) == self._at + 1:
            full = errno.ENOSPC, os.strerror(errno.ENOSPC), paths[0]
            raise self._how(*(full if self._how is OSError else ()))


_entered: list[Changes] = []
_installed: list[bool] = []


def _install() -> None:
    """The hook, which cannot be taken back; with nothing entered it does nothing."""
    if not _installed:
        _installed.append(True)
        sys.addaudithook(_hook)


def _hook(event: str, args: tuple[Any, ...]) -> None:
    writes = event in _EVENTS or (event == "open" and bool(args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)))
    if _entered and writes:
        _entered[-1].notice(event, args)
