"""The commands of the worker, read while it works."""

from __future__ import annotations

import os
import queue
import threading
import time
import traceback
from contextlib import suppress
from typing import BinaryIO

from mlxmtp.worker.lines import decode
from mlxmtp.worker.messages import Command, Stop


class Inbox:
    """A queue of commands that a thread of its own fills, so that a stop arrives while the engine works.

    When the input ends, this process ends too, whatever it is doing, after `grace_s` seconds to write its caches.

    Args:
        lines: the input, a command a line.
    """

    def __init__(self, lines: BinaryIO) -> None:
        self._lines = lines
        self._commands: queue.SimpleQueue[Command | None] = queue.SimpleQueue()
        self._stopped: set[int] = set()
        self._ended = False
        self.grace_s = 0.0
        threading.Thread(target=self._read, daemon=True).start()

    def next(self) -> Command | None:
        """Wait for the next command; None after the last."""
        return self._commands.get()

    def poll(self) -> Command | None:
        """Return the next command where one is here, else None; also None after the last."""
        with suppress(queue.Empty):
            if command := self._commands.get_nowait():
                return command
            self._commands.put(None)  # for `next`
        return None

    def stops(self, command: Command) -> bool:
        """Whether the command has to end: it was stopped, or the input has ended."""
        return self._ended or command.id in self._stopped

    def _read(self) -> None:
        code = 1
        try:
            for line in self._lines:
                command = decode(line)
                if isinstance(command, Stop):
                    self._stopped.add(command.id)
                else:
                    self._commands.put(command)
            code = 0
        except Exception:
            traceback.print_exc()
        finally:
            self._ended = True
            self._commands.put(None)
            time.sleep(self.grace_s)
            os._exit(code)
