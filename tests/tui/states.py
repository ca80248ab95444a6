"""The states that a chat can be in, to try things in each of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from mlxmtp_tui.options import ChatOptions
from mlxmtp_tui.sessions import Session, read

from mlxmtp.worker.messages import Load
from tests.tui.harness import ChatHarness, Engines, loaded, running_chat, said, saved_chat, until

STATES = (
    "choosing",
    "loading",
    "waiting",
    "ready",
    "answering",
    "stopping",
    "measuring",
    "stopping a measurement",
)
BUSY = ("answering", "stopping", "measuring", "stopping a measurement")
MEASURED = ("measuring", "stopping a measurement")
NEWEST: dict[str, list[Any]] = {"waiting": [None], "answering": ["half"], "stopping": ["half"]}
"""What there is of the newest answer in the states that have a newest turn."""
KINDS = ("refused", "memory", "failed")


async def soon(condition: Callable[[], Any], what: str = "") -> None:
    """Nothing here takes time but the turns of the event loop."""
    await until(condition, what)


@asynccontextmanager
async def in_state(state: str, turns: int = 1) -> AsyncIterator[ChatHarness]:
    """A chat of `turns` turns, "answer 1" and so on, brought to a state; where a turn runs, "half" has come of it."""
    engines = Engines()
    options = ChatOptions("./model", head="./head", choose=False)
    if state in ("loading", "waiting"):
        engines.script[Load] = []
    if state == "choosing":
        options = ChatOptions(choose=True)
    resumed = Session.resume(saved_chat(turns)) if turns else None
    status = {"waiting": "loading", "choosing": "choosing", "loading": "loading"}.get(state, "ready")
    async with running_chat(engines, options, resumed=resumed, status=status) as harness:
        if state in ("waiting", "answering", "stopping"):
            assert harness.chat.submit("newest")
        if state in MEASURED:
            harness.chat.measure()
        if state in ("answering", "stopping"):
            harness.engine.say(said("half"))
            await soon(lambda: harness.view.parts, "what came of the answer")
        if state.startswith("stopping"):
            harness.engine.deaf = True
            assert harness.chat.stop()
        engines.script[Load] = [loaded()]  # engines to come load at once
        yield harness


def kept(file: Path) -> list[str | None]:
    """What the file of a chat holds of its answers; a chat without a turn has none."""
    turns = read(file)[1].turns if file.exists() else []
    return [turn.answer.text if turn.answer else None for turn in turns]


def earlier(turns: int = 1) -> list[str]:
    return [f"answer {i + 1}" for i in range(turns)]
