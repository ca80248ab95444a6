"""The whole of it: keys in, a model's words and figures out, by way of the engine's real process."""

import os
import signal
from pathlib import Path

import pytest
from mlxmtp_tui.app import ChatApp
from mlxmtp_tui.options import ChatOptions
from mlxmtp_tui.widgets.prompt import PromptInput
from textual.pilot import Pilot

import mlxmtp
from mlxmtp.engine.request import GenerationOptions
from mlxmtp.worker.process import WorkerProcess
from tests.tui.harness import asynchronous, until
from tests.worker.driving import SMALL_MODEL

pytestmark = pytest.mark.process

REPO = Path(__file__).parents[2]
ASKED = ("Hi there!", "I'd like a large latte with oat milk, please.")


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(autouse=True)
def this_repository(measured: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine's process looks for modules where it is told to, also where the package is not installed."""
    monkeypatch.setenv("PYTHONPATH", str(REPO))
    monkeypatch.setenv("XDG_DATA_HOME", str(measured))  # exactness is measured once


async def ask(app: ChatApp, pilot: Pilot[None], text: str) -> None:
    app.query_one(PromptInput).fill(text)
    await pilot.press("enter")
    await until(lambda: app.chat.state.status == "ready", f"the answer to {text}")
    await pilot.pause()


@asynchronous
async def test_two_turns_are_those_of_the_engine():
    app = ChatApp(
        WorkerProcess.start, ChatOptions(str(SMALL_MODEL), settings=GenerationOptions(max_tokens=24, depth=2))
    )
    async with app.run_test(size=(130, 40)) as pilot:
        await until(lambda: app.chat.state.status == "ready", "the model")
        for text in ASKED:
            await ask(app, pilot, text)
        turns = app.chat.conversation.turns
        messages = app.chat.conversation.messages()
        seen = "\n".join(line.text for line in app.screen._compositor.render_strips())

    engine = mlxmtp.load(SMALL_MODEL)
    for number, turn in enumerate(turns):
        plain = engine.generate(messages[: 2 * number + 1], GenerationOptions(max_tokens=24, depth=0))
        assert plain.text.strip() == turn.answer.text.strip()
        assert " ".join(turn.answer.text.split()[:4]) in seen
    assert turns[1].answer.stats.reused_tokens > 0
    assert turns[1].answer.stats.tokens_per_round > 1


@pytest.mark.exhaustive
@asynchronous
async def test_it_stops_measures_dies_and_goes_on():
    settings = GenerationOptions(temperature=1.0, seed=3, max_tokens=3000)
    app = ChatApp(WorkerProcess.start, ChatOptions(str(SMALL_MODEL), settings=settings))
    async with app.run_test(size=(130, 40)) as pilot:
        chat = app.chat
        await until(lambda: chat.state.status == "ready", "the model")
        app.query_one(PromptInput).fill("Write a Python class with many long methods.")
        await pilot.press("enter")
        await until(lambda: chat.state.stats and chat.state.stats.tokens > 8, "some tokens")
        await pilot.press("escape")
        await until(lambda: chat.state.status == "ready", "the stop")
        stopped = chat.conversation.turns[0].answer
        assert stopped.reason == "interrupted"
        assert 8 < stopped.stats.tokens < 3000

        app.slash("bench")
        await until(lambda: chat.state.plain_tps, "the measurement", within=90)
        await until(lambda: "by mlx-lm" in str([w.render() for w in app.query(".note")]), "what was measured")

        chat.change_settings(max_tokens=40)
        os.kill(chat._client._process.pid, signal.SIGKILL)
        await until(lambda: chat.state.status == "gone", "the end of the engine")
        assert chat.conversation.turns[0].answer == stopped
        await pilot.press("ctrl+r")
        await until(lambda: chat.state.status == "ready", "another engine")
        await ask(app, pilot, "And now?")
        assert chat.conversation.turns[1].answer.reason in ("stop", "length")
        engine = chat._client._process.pid
    await until(lambda: not alive(engine), "nobody left")


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
