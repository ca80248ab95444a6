"""What the worker is told, heard while it works."""

from __future__ import annotations

import math
import os
import queue
import threading
import time
import traceback
from typing import BinaryIO

from mlxmtp.worker.lines import decode
from mlxmtp.worker.messages import Command, Stop


class Inbox:
    """Commands, read by a thread of their own, so that a stop is heard while the engine works.

    When the other side goes away, so does this process, whatever it is doing: after `grace_s`, for what is to be kept.
    """

    def __init__(self, lines: BinaryIO) -> None:
        self._lines = lines
        self._commands: queue.SimpleQueue[Command | None] = queue.SimpleQueue()
        self._stopped = 0.0
        self.grace_s = 0.0
        threading.Thread(target=self._read, daemon=True).start()

    def next(self) -> Command | None:
        """The next command; None: there is none to come."""
        return self._commands.get()

    def stops(self, command: Command) -> bool:
        """Whether the command is to end."""
        return command.id <= self._stopped

    def _read(self) -> None:
        code = 1
        try:
            for line in self._lines:
                command = decode(line)
                if isinstance(command, Stop):
                    self._stopped = max(self._stopped, command.id)
                else:
                    self._commands.put(command)
            code = 0
        except Exception:
            traceback.print_exc()
        finally:
            self._stopped = math.inf
            self._commands.put(None)
            time.sleep(self.grace_s)
            os._exit(code)
