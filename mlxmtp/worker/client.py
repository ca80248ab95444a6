"""The other side: starts the worker, sends it commands, gives out its events."""

import asyncio
import sys
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Self

from mlxmtp.worker.lines import decode, encode
from mlxmtp.worker.messages import Command, Died, Event, Stop

# -P: whatever lies in the user's folder must not be imported in place of a module
PROGRAM = (sys.executable, "-P", "-m", "mlxmtp.worker")
LINE_BYTES = 64 << 20
"""The longest message: a pasted book in a prompt."""
GRACE_S = 2.0
LAST_LINES = 12


class WorkerProcess:
    """A worker of our own; use `start`. It ends when we do, even when we are killed: its standard input ends then."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._last: deque[str] = deque(maxlen=LAST_LINES)
        self._listening = asyncio.create_task(self._listen())
        self._id = 0

    @classmethod
    async def start(cls, program: Sequence[str] = PROGRAM) -> Self:
        """Start the process; it answers when it has imported what it needs."""
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *program, stdin=pipe, stdout=pipe, stderr=pipe, limit=LINE_BYTES, start_new_session=True
        )
        return cls(process)

    @property
    def pid(self) -> int:
        return self._process.pid

    def next_id(self) -> int:
        """The `id` of the next command."""
        self._id += 1
        return self._id

    def send(self, command: Command) -> None:
        """Give the worker a command. To one that is gone, nothing happens: `events` says so."""
        assert self._process.stdin
        line = encode(command)
        with suppress(OSError, RuntimeError):
            self._process.stdin.write(line)

    def stop(self) -> None:
        """End all commands so far, as soon as may be."""
        self.send(Stop(self._id))

    async def events(self) -> AsyncIterator[Event]:
        """Everything the worker says; the last is `Died`, however it ends."""
        assert self._process.stdout
        with suppress(OSError):
            async for line in self._process.stdout:
                yield decode(line)
        code = await self._process.wait()
        await self._listening
        yield Died(self._id, code, "\n".join(self._last))

    def kill(self) -> None:
        """End it at once, whatever it is doing."""
        with suppress(ProcessLookupError):
            self._process.kill()

    async def close(self, grace_s: float = GRACE_S) -> None:
        """End it, and wait until it is gone; it may take `grace_s` to write what it keeps."""
        assert self._process.stdin
        self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), grace_s)
        except TimeoutError:
            self.kill()
            await self._process.wait()

    async def _listen(self) -> None:
        """Keep its last words, or it would block on a full pipe."""
        assert self._process.stderr
        with suppress(OSError, ValueError):
            async for line in self._process.stderr:
                if text := line.decode(errors="replace").rsplit("\r", 1)[-1].strip():
                    self._last.append(text)
