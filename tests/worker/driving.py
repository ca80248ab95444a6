"""Ways to drive a worker: the real process from code that is not asynchronous, and `Worker` in this process."""

from __future__ import annotations

import asyncio
import io
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from mlxmtp.engine.output import Segment, join_segments
from mlxmtp.engine.prefix_cache import PrefixCache
from mlxmtp.files import data_folder
from mlxmtp.worker.lines import ProtocolError, decode
from mlxmtp.worker.messages import (
    Command,
    Died,
    Event,
    Stop,
    TurnDelta,
    ends_command,
)
from mlxmtp.worker.process import GRACE_S, PROGRAM, WorkerProcess
from mlxmtp.worker.serve import Worker
from tests.conftest import REPO

PATIENCE_S = 60
SMALL_MODEL = REPO / "tests" / "trained" / "glm4_moe"
"""A trained model with a head; it is loaded and measured ten times as fast as the demo model."""


def share_measurements(data: Path) -> None:
    """Let a data folder of a test keep what is measured of exactness where the session keeps it."""
    kept = data_folder() / "identity"
    kept.mkdir(parents=True, exist_ok=True)
    (data / "mlxmtp").mkdir(parents=True, exist_ok=True)
    (data / "mlxmtp" / "identity").symlink_to(kept)


class Driven:
    """A worker process; its event loop runs only while an event is waited for."""

    def __init__(self, program: Sequence[str] = PROGRAM) -> None:
        self._runner = asyncio.Runner()
        self.process = self._runner.run(WorkerProcess.start(program))
        self._events = self.process.events()
        self._newest = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.run(self._end())
        self._runner.close()

    async def _end(self) -> None:
        self.process.kill()
        with suppress(ProtocolError):
            async for _ in self._events:
                pass
        await self.process.close()
        assert self.process._process.stdout
        await self.process._process.stdout.read()  # what came after a line that is no message

    def send(self, kind: type[Command], *content: Any, **named: Any) -> int:
        """Give it a command; its id."""
        self._newest += 1
        self.process.send(kind(self._newest, *content, **named))
        return self._newest

    def stop(self, *commands: int) -> None:
        """Stop commands by their ids."""
        for command in commands:
            self.process.send(Stop(command))

    def event(self) -> Event:
        """The next event."""
        return self._runner.run(asyncio.wait_for(anext(self._events), PATIENCE_S))

    def until(self, *kinds: type[Event]) -> Event:
        """The next event of these kinds, nothing having ended before it."""
        while not isinstance(event := self.event(), kinds):
            assert not ends_command(event), event
        return event

    def rest(self, command: int) -> list[Event]:
        """What still comes of a command."""
        events = [self.event()]
        while not ends_command(events[-1]):
            events.append(self.event())
        assert {event.id for event in events if not isinstance(event, Died)} <= {command}, events
        return events

    def answer(self, kind: type[Command], *content: Any, **named: Any) -> list[Event]:
        """All that comes of a command."""
        return self.rest(self.send(kind, *content, **named))

    def close(self, grace_s: float = GRACE_S) -> Died:
        """Close it as a program does; its last event."""
        self._runner.run(self.process.close(grace_s))
        return self.until(Died)


def said(events: Sequence[Event]) -> list[Segment]:
    """What a turn said, neighbours of a kind as one."""
    return join_segments(
        Segment(kind, text) for event in events if isinstance(event, TurnDelta) for kind, text in event.segments
    )


def text_of(events: Sequence[Event]) -> str:
    return "".join(part.text for part in said(events))


class _OverError(Exception):
    """There are no more commands."""


class _Script:
    """In place of an `Inbox`: these commands, then the end."""

    def __init__(self, commands: Sequence[Command], stops: Callable[[Command], bool]) -> None:
        self._commands = deque(commands)
        self.stops = stops

    def next(self) -> Command:
        if not self._commands:
            raise _OverError
        return self._commands.popleft()

    def poll(self) -> Command | None:
        return self._commands.popleft() if self._commands else None


def serve(
    *commands: Command, engine: Any = None, stops: Callable[[Command], bool] = lambda _: False, parallel: int = 1
) -> list[Event]:
    """What `Worker` says to these commands, in this process; with an engine, that one is loaded already."""
    out = io.BytesIO()
    worker = Worker(_Script(commands, stops), out)  # type: ignore[arg-type]
    if engine is not None:
        worker.use(engine, PrefixCache(1 << 30), parallel)
    with suppress(_OverError):
        worker.run()
    return [decode(line) for line in out.getvalue().splitlines()]


def is_gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody has waited for has ended too."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except ProcessLookupError:
        return True
    except FileNotFoundError:  # a system without /proc, or it ended just now
        return Path("/proc/self").exists()


def wait_until(happened: Callable[[], bool], seconds: float) -> bool:
    """Whether it has happened by then."""
    end = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True
