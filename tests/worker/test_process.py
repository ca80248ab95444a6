"""The worker as a process: how it starts, what comes out of it, and that nothing of it is left."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mlxmtp.engine.request import GenerationOptions
from mlxmtp.worker import process
from mlxmtp.worker.lines import ProtocolError
from mlxmtp.worker.messages import (
    Died,
    Failed,
    Generate,
    ListModels,
    Models,
)
from mlxmtp.worker.process import WorkerProcess
from tests.conftest import REPO
from tests.worker.driving import PATIENCE_S, Driven, is_gone, wait_until

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("home")]

HELD_S = 30
"""How long programs that must be ended by others would go on."""


def python(program: str) -> tuple[str, ...]:
    return (sys.executable, "-c", program)


WORKER = """
import os, subprocess, sys, time
from mlxmtp.worker import serve
from mlxmtp.worker.messages import Failed, Models
class Worker(serve.Worker):
    def _execute(self, command):
{}
serve.Worker = Worker
serve.main()
"""


def worker_that(*does: str) -> tuple[str, ...]:
    """A worker that does this with every command."""
    return python(WORKER.format("\n".join(f"        {line}" for line in does)))


ANSWERS = "self._emit(Models(command.id, [], 0))"
NOISY = (
    "print('a print')",
    "sys.stdout.flush()",
    "os.write(1, b'a descriptor\\n')",
    "subprocess.run(['echo', 'a child'])",
)


def test_only_messages_come_out() -> None:
    """Whatever prints: Python, a library, a program that it starts."""
    with Driven(worker_that(*NOISY, ANSWERS)) as driven:
        assert driven.answer(ListModels) == [Models(1, [], 0)]
        assert driven.answer(ListModels) == [Models(2, [], 0)]
        assert driven.close().last.splitlines() == ["a print", "a descriptor", "a child"] * 2


def test_a_program_that_says_something_else_is_told_apart() -> None:
    with Driven(python("print('welcome')")) as driven, pytest.raises(ProtocolError, match="welcome"):
        driven.event()


def test_long_lines_go_both_ways() -> None:
    """Longer than a pipe holds, and than asyncio reads unless it is told to."""
    longs = ("content = command.messages[0]['content']", "self._emit(Models(command.id, [], len(content)))")
    with Driven(worker_that(*longs)) as driven:
        text = "a book " * 500_000
        assert driven.answer(Generate, [{"role": "user", "content": text}], GenerationOptions()) == [
            Models(1, [], len(text))
        ]
    with Driven(worker_that("self._emit(Failed(command.id, 'failed', 'x' * 3_000_000))")) as driven:
        assert driven.answer(ListModels) == [Failed(1, "failed", "x" * 3_000_000)]


def test_its_exit_code_and_last_words_are_told() -> None:
    with Driven(python("import sys; sys.exit('why')")) as driven:
        assert driven.event() == Died(0, 1, "why")
    with Driven(python("import sys; print('why', file=sys.stderr); sys.exit(3)")) as driven:
        assert driven.event() == Died(0, 3, "why")


def test_an_accident_is_the_last_that_it_says() -> None:
    with Driven(worker_that("raise KeyError('an accident')")) as driven:
        driven.send(ListModels)
        died = driven.event()
        assert isinstance(died, Died)
        assert "serve.py" in died.last, "where it was"
        assert died.last.splitlines()[-1] == "KeyError: 'an accident'"
        assert died.code == 1


def test_of_many_words_the_last_are_kept() -> None:
    """More than a pipe holds: they are read all the time. Of what was written over itself, the end."""
    talks = "for i in range(50_000): print('line', i, file=sys.stderr)"
    bar = "sys.stderr.write('\\r 10%\\r100%\\n   \\n')"
    with Driven(python(f"import sys\n{talks}\n{bar}")) as driven:
        died = driven.event()
    assert isinstance(died, Died)
    expected = [f"line {i}" for i in range(50_000)][-process.LAST_LINES + 1 :]
    assert died.last.splitlines() == [*expected, "100%"]


def test_a_killed_worker_has_died_of_it() -> None:
    with Driven(worker_that(ANSWERS)) as driven:
        driven.answer(ListModels)
        driven.process.kill()
        assert driven.event() == Died(0, -signal.SIGKILL, "")
        driven.process.kill()
        driven.send(ListModels)
        driven.stop(2)  # all in vain, and no error


def test_closing_ends_it_and_waits() -> None:
    with Driven(worker_that(ANSWERS)) as driven:
        driven.answer(ListModels)
        assert driven.close() == Died(0, 0, "")  # and not by a signal
        assert is_gone(driven.process.pid)


def test_closing_ends_it_at_work() -> None:
    with Driven(worker_that(ANSWERS, f"time.sleep({HELD_S})")) as driven:
        driven.answer(ListModels)
        assert driven.close() == Died(0, 0, "")


def test_closing_ends_what_does_not_listen() -> None:
    with Driven(python(f"import time; time.sleep({HELD_S})")) as driven:
        assert driven.close(grace_s=0.2) == Died(0, -signal.SIGKILL, "")
        assert is_gone(driven.process.pid)


def test_it_is_driven_from_asyncio() -> None:
    """As an application does it: one task reads the events, another sends commands."""

    async def run() -> list[object]:
        worker = await WorkerProcess.start(worker_that(ANSWERS))
        events: list[object] = []

        async def listen() -> None:
            async for event in worker.events():
                events.append(event)
                if len(events) == 2:
                    asyncio.create_task(worker.close())  # noqa: RUF006 - the last event waits for it

        listening = asyncio.create_task(listen())
        for number in (1, 2):
            worker.send(ListModels(number))
        await asyncio.wait_for(listening, PATIENCE_S)
        return events

    assert asyncio.run(run()) == [Models(1, [], 0), Models(2, [], 0), Died(0, 0, "")]


def test_ctrl_c_in_the_terminal_is_not_its_affair() -> None:
    """It reaches all of a terminal's foreground group; the worker is in another."""
    with Driven(worker_that(ANSWERS)) as driven:
        driven.answer(ListModels)
        assert os.getpgid(driven.process.pid) != os.getpgid(os.getpid())
        assert os.getsid(driven.process.pid) == driven.process.pid


def test_files_in_the_users_folder_are_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("json.py", "queue.py", "mlxmtp.py"):
        (tmp_path / name).write_text("raise SystemExit('the file in the folder')")
    monkeypatch.chdir(tmp_path)
    with Driven() as driven:
        assert driven.close() == Died(0, 0, "")


@pytest.mark.parametrize("line", [b"nonsense\n", b'{"type": "Stop", "id": "all"}\n'], ids=["nonsense", "no id"])
def test_a_line_that_is_no_command_leaves_no_orphan(line: bytes) -> None:
    """Nobody would hear the worker, and nobody would end it."""
    with subprocess.Popen(
        process.PROGRAM, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as one:
        try:
            assert one.stdin
            one.stdin.write(line)
            one.stdin.close()
            assert wait_until(lambda: one.poll() is not None, 5), "it is still there"
        finally:
            one.kill()


PARENT = """
import asyncio, sys
from mlxmtp.worker.process import WorkerProcess
from mlxmtp.worker.messages import ListModels

async def main():
    idle, busy = await WorkerProcess.start(), await WorkerProcess.start(sys.argv[1:])
    busy.send(ListModels(1))
    async for event in busy.events():
        print(idle.pid, busy.pid, flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""
"""A program with an idle worker and one that is at work; it says when. Its arguments are the command of the second."""


def test_no_worker_outlives_its_parent() -> None:
    """Killed, the parent cannot say that it goes."""
    busy = worker_that(ANSWERS, f"time.sleep({HELD_S})")
    with subprocess.Popen((*python(PARENT), *busy), cwd=REPO, stdout=subprocess.PIPE, text=True) as parent:
        try:
            assert parent.stdout
            workers = [int(pid) for pid in parent.stdout.readline().split()]
            assert len(workers) == 2
            assert not any(map(is_gone, workers))
        finally:
            parent.kill()
    assert wait_until(lambda: all(map(is_gone, workers)), 10)


def test_a_program_that_is_not_there() -> None:
    with pytest.raises(FileNotFoundError):
        asyncio.run(WorkerProcess.start(("/no/such/program",)))
