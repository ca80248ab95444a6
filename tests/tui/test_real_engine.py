"""The whole of it: keys in, the demo model's words and figures out, by way of the engine's real process."""

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

pytestmark = pytest.mark.process

REPO = Path(__file__).parents[2]
ASKED = ("Hi there!", "I'd like a large latte with oat milk, please.")


@pytest.fixture(autouse=True)
def this_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine's process looks for modules where it is told to, also where the package is not installed."""
    monkeypatch.setenv("PYTHONPATH", str(REPO))


async def ask(app: ChatApp, pilot: Pilot[None], text: str) -> None:
    app.query_one(PromptInput).fill(text)
    await pilot.press("enter")
    await until(lambda: app.chat.state.status == "ready", f"the answer to {text}")
    await pilot.pause()


@asynchronous
async def test_two_turns_are_those_of_the_engine():
    app = ChatApp(WorkerProcess.start, ChatOptions(settings=GenerationOptions(max_tokens=64)))
    async with app.run_test(size=(130, 40)) as pilot:
        await until(lambda: app.chat.state.status == "ready", "the model")
        for text in ASKED:
            await ask(app, pilot, text)
        turns = app.chat.conversation.turns
        messages = app.chat.conversation.messages()
        seen = "\n".join(line.text for line in app.screen._compositor.render_strips())

    engine = mlxmtp.load()
    for number, turn in enumerate(turns):
        plain = engine.generate(messages[: 2 * number + 1], GenerationOptions(max_tokens=64, depth=0))
        assert plain.text.strip() in (turn.answer.text, as_called(turn.answer.calls))
    assert turns[1].answer.calls[0]["name"] in seen
    assert turns[0].answer.text in seen
    assert turns[1].answer.stats.reused_tokens > 0
    assert turns[1].answer.stats.tokens_per_round > 1


def as_called(calls: list[dict]) -> str:
    """A call as the demo writes it."""
    return "\n".join(
        f'<tool_call>\n{{"name": "{call["name"]}", "arguments": {str(call["arguments"]).replace(chr(39), chr(34))}}}\n'
        "</tool_call>"
        for call in calls
    )


@asynchronous
async def test_it_stops_measures_dies_and_goes_on():
    settings = GenerationOptions(temperature=1.0, seed=3, max_tokens=3000)
    app = ChatApp(WorkerProcess.start, ChatOptions(settings=settings))
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
