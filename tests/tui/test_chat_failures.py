"""An engine that fails, dies, hangs or speaks nonsense costs the chat no answer and leaves no dead end."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from mlxmtp_tui.options import ChatOptions

from mlxmtp.worker.lines import ProtocolError as NoMessage
from mlxmtp.worker.messages import Failed, Generate, Load
from tests.tui.harness import Engines, answering, asynchronous, loaded, running_chat
from tests.tui.states import KINDS, NEWEST, STATES, earlier, in_state, soon

# -- failures ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [True, False])
@asynchronous
async def test_a_model_that_is_not_there_leaves_the_old_one(kept: bool) -> None:
    async with running_chat(options=ChatOptions("first")) as harness:
        before = harness.chat.loaded
        harness.engine.on(Load, [Failed(0, "refused", "/nope: there is no such folder", kept)])
        harness.chat.load("/nope")
        await harness.reach("ready" if kept else "choosing")
        assert harness.view.errors == ["/nope: there is no such folder"]
        assert harness.chat.loaded == (before if kept else None)
        assert harness.chat.model == ("first" if kept else "/nope")
        if kept:
            harness.engine.on(Generate, answering("goes on"))
            assert harness.chat.submit("next")
            await soon(lambda: harness.answers == ["goes on"])


@pytest.mark.parametrize("turns", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("state", [state for state in STATES if state not in ("choosing", "ready")])
@asynchronous
async def test_a_command_that_failed_is_told_and_harms_no_answer(state: str, kind: Any, turns: int) -> None:
    async with in_state(state, turns) as harness:
        harness.engine.say(Failed(0, kind, "the reason"))
        await soon(lambda: harness.view.errors, "the failure")
        (told,) = harness.view.errors
        assert told.startswith("the reason")
        assert ("smaller model" in told) == (kind == "memory")
        assert harness.answers == earlier(turns) + NEWEST.get(state, [])
        if state in ("answering", "stopping"):
            assert harness.reasons[-1] == "failed"
        assert harness.on_disk() == harness.chat.conversation
        assert harness.status == ("choosing" if state in ("loading", "waiting") else "ready")
        # and it goes on: with another model, where this one could not be loaded
        if harness.status == "choosing":
            harness.engine.on(Load, [loaded("other")])
            harness.engine.on(Generate, answering("after all"))
            harness.chat.load("other")
            await soon(lambda: harness.chat.loaded)
            await harness.reach("ready")
        if state == "waiting":
            await soon(lambda: harness.answers == [*earlier(turns), "after all"])
        harness.engine.on(Generate, answering("goes on"))
        assert harness.chat.submit("next")
        await soon(lambda: harness.answers[-1] == "goes on")


@pytest.mark.parametrize("turns", [0, 1])
@pytest.mark.parametrize("state", STATES)
@asynchronous
async def test_an_engine_that_died_costs_no_word_and_the_same_model_is_loaded_again(state: str, turns: int) -> None:
    async with in_state(state, turns) as harness:
        died = harness.engine
        model = None if state == "choosing" else "./model"
        died.die(-9, "loading\nmlx said something")
        await harness.reach("gone")
        (told,) = harness.view.errors
        assert told == (
            "the engine has died (killed, perhaps because memory ran out: mlx said something); "
            "ctrl+r starts it again, the chat is kept"
        )
        assert harness.answers == earlier(turns) + NEWEST.get(state, [])
        if state in ("answering", "stopping"):
            assert harness.reasons[-1] == "failed"
            assert harness.view.calls[-1] == "ended"
        assert harness.on_disk() == harness.chat.conversation
        assert harness.chat.loaded is None
        harness.engines.script[Generate] = answering("after all")
        await harness.chat.restart()
        assert len(harness.engines.all) == 2
        if state == "choosing":
            assert harness.status == "choosing"
            harness.chat.load(None)
        load = harness.engine.sent(Load)[0]
        assert (load.model, load.head) == (model, "./head" if model else None)
        await harness.reach("ready")
        if state == "waiting":
            await soon(lambda: harness.answers == [*earlier(turns), "after all"])
            await harness.reach("ready")
        assert harness.chat.submit("next")
        await soon(lambda: harness.answers[-1] == "after all")
        assert harness.on_disk() == harness.chat.conversation


@pytest.mark.parametrize(
    ("code", "said_of_it"),
    [(-9, "killed, perhaps because memory ran out"), (-11, "signal 11"), (3, "exit code 3"), (0, "exit code 0")],
)
@asynchronous
async def test_how_an_engine_ended_is_told_with_or_without_last_words(code: int, said_of_it: str) -> None:
    for last in ("", "a\nb"):
        async with running_chat() as harness:
            harness.engine.die(code, last)
            await harness.reach("gone")
            (told,) = harness.view.errors
            words = ": b" if last else ""
            assert told == f"the engine has died ({said_of_it}{words}); ctrl+r starts it again, the chat is kept"


@pytest.mark.parametrize("state", [state for state in STATES if state != "choosing"])
@asynchronous
async def test_an_engine_that_hangs_is_killed_and_replaced(state: str) -> None:
    async with in_state(state) as harness:
        hung = harness.engine
        await harness.chat.restart()
        await soon(lambda: harness.status in ("ready", "answering"), "the new engine")
        assert hung.killed
        assert len(harness.engines.all) == 2
        assert harness.engine.sent(Load)[0].model == "./model"
        assert harness.answers == earlier() + NEWEST.get(state, [])
        assert harness.view.errors == [], "it did not die by itself"
        assert harness.on_disk() == harness.chat.conversation


@asynchronous
async def test_an_engine_that_speaks_nonsense_is_gone_and_can_be_replaced() -> None:
    async with in_state("answering") as harness:
        harness.engine.break_with(NoMessage("not a message of this version: b'oops'"))
        await soon(lambda: harness.status == "gone", "the end of it")
        assert "not a message of this version" in harness.view.errors[0]
        assert harness.answers == ["answer 1", "half"]
        await harness.chat.restart()
        await harness.reach("ready")


@asynchronous
async def test_an_engine_that_is_killed_in_the_middle_of_a_word_is_replaced_in_silence() -> None:
    async with in_state("answering") as harness:
        hung = harness.engine
        hung.kill = lambda: hung.break_with(NoMessage("not a message of this version: b'{\"typ'"))  # type: ignore[method-assign]
        await harness.chat.restart()
        await harness.reach("ready")
        assert harness.view.errors == []


@asynchronous
async def test_an_engine_that_cannot_be_started_is_told_and_tried_again() -> None:
    engines = Engines()
    engines.refusal = OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
    async with running_chat(engines, ChatOptions("./model"), status="gone") as harness:
        assert "the engine cannot be started" in harness.view.errors[0]
        assert os.strerror(errno.ENOMEM) in harness.view.errors[0]
        assert harness.chat.submit("wait for it")
        await harness.chat.restart()
        assert harness.status == "gone"
        engines.refusal = None
        await harness.chat.restart()
        await harness.reach("answering")
        assert harness.engine.sent(Load)[0].model == "./model"
        assert harness.engine.sent(Generate)[0].messages[-1]["content"] == "wait for it"


@asynchronous
async def test_a_chat_that_is_not_saved_is_told_and_goes_on(chats: Path) -> None:
    chats.parent.mkdir(parents=True)
    chats.write_text("a file where the folder should be")
    async with running_chat() as harness:
        harness.engine.on(Generate, answering("one"))
        harness.chat.submit("first")
        await harness.reach("ready")
        assert "the chat is not saved" in harness.view.errors[0]
        chats.unlink()
        harness.chat.submit("second")
        await harness.reach("ready")
        told = len(harness.view.errors)
        harness.chat.submit("third")
        await harness.reach("ready")
        assert len(harness.view.errors) == told, "all is well again"
        assert harness.on_disk() == harness.chat.conversation
