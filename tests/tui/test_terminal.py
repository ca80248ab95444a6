"""`mlxmtp chat` as a user runs it: in a real terminal, tmux's, with a small model."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.worker.driving import SMALL_MODEL, share_measurements

pytestmark = pytest.mark.process

REPO = Path(__file__).parents[2]
CHAT = ("chat", "--model", str(SMALL_MODEL), "--max-tokens")
PATIENCE_S = 60.0


class Tmux:
    """A terminal on a tmux server of its own, with one command in it.

    Args:
        folder: HOME and data folder of the command.
    """

    def __init__(self, folder: Path, *arguments: str) -> None:
        self._socket = f"{tempfile.mkdtemp()}/tmux"
        self.folder = folder
        path = os.pathsep.join([str(REPO), str(REPO / "tui")])
        command = (
            f"env -u COLUMNS -u LINES {sys.executable} -m mlxmtp {' '.join(arguments)}; echo left with $?; exec cat"
        )
        options = ("-e", f"HOME={folder}", "-e", f"XDG_DATA_HOME={folder}", "-e", f"PYTHONPATH={path}")
        self("new-session", "-d", "-s", "chat", "-x", "130", "-y", "36", "-c", str(folder), *options, command)

    def __call__(self, *arguments: str) -> str:
        program = ["tmux", "-S", self._socket, "-f", os.devnull, *arguments]
        return subprocess.run(program, check=True, capture_output=True, text=True, timeout=20).stdout

    def type(self, text: str) -> None:
        self("send-keys", "-l", text)

    def press(self, *keys: str) -> None:
        self("send-keys", *keys)

    @property
    def screen(self) -> str:
        return self("capture-pane", "-p")

    def until(self, condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, f"never came: {what}; the screen:\n{self.screen}"
            time.sleep(0.05)

    def sees(self, *texts: str) -> None:
        self.until(lambda: all(text in self.screen for text in texts), str(texts))

    def flags(self) -> dict[str, str]:
        """What a program leaves behind if it does not clean up."""
        names = ("alternate_on", "cursor_flag", "mouse_any_flag", "keypad_cursor_flag")
        values = self("display-message", "-p", " ".join(f"#{{{name}}}" for name in names)).split()
        return dict(zip(names, values, strict=True))

    def processes(self) -> tuple[int, int]:
        """The chat, and the engine that it started."""
        shell = int(self("display-message", "-p", "#{pane_pid}"))
        chat = next(pid for pid, parent in processes().items() if parent == shell)
        engine = next(pid for pid, parent in processes().items() if parent == chat)
        return chat, engine

    def records(self) -> list[dict]:
        return [json.loads(line) for file in self.folder.rglob("*.jsonl") for line in lines_of_chat(file)]


def lines_of_chat(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.parent.name == "chats" else []


def processes() -> dict[int, int]:
    """The parent of each process that runs."""
    table = subprocess.run(["ps", "-ax", "-o", "pid=,ppid=,stat="], check=True, capture_output=True, text=True).stdout
    rows = [line.split() for line in table.splitlines()]
    return {int(pid): int(parent) for pid, parent, state in rows if not state.startswith("Z")}


@pytest.fixture
def terminal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Tmux]]:
    """terminal(*arguments): `mlxmtp ARGUMENTS` in a terminal."""
    if not shutil.which("tmux"):
        pytest.skip("tmux is not installed")
    opened: list[Tmux] = []

    def open_one(*arguments: str, folder: Path | None = None) -> Tmux:
        if folder is None:
            folder = tmp_path_factory.mktemp("home")
            share_measurements(folder)
        opened.append(Tmux(folder, *arguments))
        return opened[-1]

    yield open_one
    for one in opened:
        one("kill-server")


def test_a_chat_from_start_to_end(terminal):
    chat = terminal(*CHAT, "12")
    chat.sees("sk something", "depth auto")
    chat.type("Hi there!")
    chat.press("Enter")
    chat.sees("tok/round", "ttft")
    answer = next(record for record in chat.records() if record.get("role") == "assistant")
    chat.sees("Hi there!", answer["content"], "token-identical")

    chat("resize-window", "-x", "70", "-y", "20")
    chat.until(lambda: "token-identical" not in chat.screen, "the panel folds")
    chat.sees("of 4,096", answer["content"])
    chat("resize-window", "-x", "130", "-y", "36")
    chat.sees("token-identical", answer["content"])

    ours = chat.processes()
    chat.press("C-d")
    chat.sees("left with 0")
    assert chat.flags() == {"alternate_on": "0", "cursor_flag": "1", "mouse_any_flag": "0", "keypad_cursor_flag": "0"}
    assert not set(ours) & set(processes())

    again = terminal("chat", "--continue", folder=chat.folder)
    again.sees("Hi there!", answer["content"], "depth")


@pytest.mark.exhaustive
def test_a_killed_chat_leaves_its_words_and_no_engine(terminal):
    chat = terminal(*CHAT, "3000", "--temp", "1", "--seed", "5")
    chat.sees("depth auto")
    chat.type("Write a Python class with many long methods.")
    chat.press("Enter")
    chat.until(lambda: list(chat.folder.rglob("[!.]*.partial")), "a part of the answer on the disk")
    program, engine = chat.processes()
    os.kill(program, signal.SIGKILL)
    chat.until(lambda: engine not in processes(), "the engine ends with the chat")
    part = json.loads(next(iter(chat.folder.rglob("[!.]*.partial"))).read_text())["content"]
    assert part

    again = terminal(*CHAT, "12", "--continue", folder=chat.folder)
    again.sees("Write a Python class", "stopped")
    kept = [record["content"] for record in again.records() if record.get("role") == "assistant"]
    assert kept == [part]
    program, engine = again.processes()
    os.kill(program, signal.SIGTERM)
    again.sees("left with 0")
    assert again.flags()["alternate_on"] == "0"
    assert engine not in processes()


@pytest.mark.exhaustive
def test_ctrl_c_twice_leaves_while_the_model_loads(terminal):
    chat = terminal(*CHAT, "12")
    chat.sees("sk something")
    chat.press("C-c")
    chat.sees("again leaves")
    chat.press("C-c")
    chat.sees("left with 0")


@pytest.mark.exhaustive
@pytest.mark.parametrize("closed", ["stdin", "stdout", "stderr"])
def test_without_a_terminal_it_says_what_to_use(closed, tmp_path):
    leader, follower = os.openpty()
    streams = {"stdin": follower, "stdout": follower, "stderr": subprocess.PIPE} | {closed: subprocess.PIPE}
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(REPO), str(REPO / "tui")])}
    program = [sys.executable, "-m", "mlxmtp", "chat"]
    streams["stderr"] = subprocess.PIPE
    ran = subprocess.run(program, **streams, text=True, env=environment, cwd=tmp_path, timeout=60)
    os.close(leader)
    os.close(follower)
    assert ran.returncode == 2
    assert "mlxmtp generate" in ran.stderr
    assert ran.stderr.count("\n") == 1
