"""The transport to the engine's process: commands to its standard input, events from its standard output."""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Protocol, Self

from mlxmtp.worker.lines import decode, encode
from mlxmtp.worker.messages import Command, Died, Event

# -P: a file in the user's folder must not be imported in place of a module
PROGRAM = (sys.executable, "-P", "-m", "mlxmtp.worker")
MAX_LINE_BYTES = 64 << 20
"""The longest message in bytes: a prompt can hold a pasted book."""
GRACE_S = 2.0
"""Seconds that a process has to end by itself once its standard input is closed."""
LAST_LINES = 12
"""Lines of standard error that `Died` reports."""


class Transport(Protocol):
    """A running engine: `WorkerProcess`, or a scripted one in tests."""

    def send(self, command: Command) -> None: ...
    def events(self) -> AsyncIterator[Event]: ...
    def kill(self) -> None: ...
    async def close(self, grace_s: float = GRACE_S) -> None: ...


StartTransport = Callable[[], Awaitable[Transport]]
"""Starts an engine; raises OSError where that is impossible."""


class WorkerProcess:
    """A child process that runs the engine; made by `start`.

    The process ends when its standard input ends, so it never outlives its parent, even one that is killed.
    """

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._last_lines: deque[str] = deque(maxlen=LAST_LINES)
        self._stderr_reader = asyncio.create_task(self._read_stderr())

    @classmethod
    async def start(cls, program: Sequence[str] = PROGRAM) -> Self:
        """Start the process. It reads commands once its imports are done.

        Raises:
            OSError: the program cannot be started.
        """
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *program, stdin=pipe, stdout=pipe, stderr=pipe, limit=MAX_LINE_BYTES, start_new_session=True
        )
        return cls(process)

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, command: Command) -> None:
        """Write a command. A process that is gone ignores it: `events` reports the death."""
        assert self._process.stdin
        line = encode(command)
        with suppress(OSError, RuntimeError):
            self._process.stdin.write(line)

    async def events(self) -> AsyncIterator[Event]:
        """Yield the events of all commands; the last is `Died`, however the process ends.

        Raises:
            ProtocolError: a line is not a message.
            ValueError: a line is longer than `MAX_LINE_BYTES`.
        """
        assert self._process.stdout
        with suppress(OSError):
            async for line in self._process.stdout:
                yield decode(line)
        code = await self._process.wait()
        await self._stderr_reader
        yield Died(0, code, "\n".join(self._last_lines))

    def kill(self) -> None:
        """End the process at once, whatever it is doing."""
        with suppress(ProcessLookupError):
            self._process.kill()

    async def close(self, grace_s: float = GRACE_S) -> None:
        """End the process and wait until it is gone; after `grace_s` seconds it is killed."""
        assert self._process.stdin
        self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), grace_s)
        except TimeoutError:
            self.kill()
            await self._process.wait()

    async def _read_stderr(self) -> None:
        """Keep the last lines. The pipe is read to its end: a full one would block the process."""
        assert self._process.stderr
        with suppress(OSError, ValueError):
            async for line in self._process.stderr:
                if text := line.decode(errors="replace").rsplit("\r", 1)[-1].strip():
                    self._last_lines.append(text)
