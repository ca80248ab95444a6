"""An engine that fails, dies, hangs or speaks nonsense costs the chat no answer and leaves no dead end."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from mlxmtp_tui.roles import Options

from mlxmtp.worker.lines import ProtocolError as NoMessage
from mlxmtp.worker.messages import Failed, Generate, Load
from tests.tui.scripted import Engines, answering, asynchronous, loaded, talking
from tests.tui.states import KINDS, NEWEST, STATES, earlier, in_state, soon

# -- failures ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [True, False])
@asynchronous
async def test_a_model_that_is_not_there_leaves_the_old_one(kept: bool) -> None:
    async with talking(options=Options("first")) as talk:
        before = talk.chat.loaded
        talk.engine.on(Load, [Failed(0, "refused", "/nope: there is no such folder", kept)])
        talk.chat.load("/nope")
        await talk.reach("ready" if kept else "choosing")
        assert talk.view.errors == ["/nope: there is no such folder"]
        assert talk.chat.loaded == (before if kept else None)
        assert talk.chat.model == ("first" if kept else "/nope")
        if kept:
            talk.engine.on(Generate, answering("goes on"))
            assert talk.chat.submit("next")
            await soon(lambda: talk.answers == ["goes on"])


@pytest.mark.parametrize("turns", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("state", [state for state in STATES if state not in ("choosing", "ready")])
@asynchronous
async def test_a_command_that_failed_is_told_and_harms_no_answer(state: str, kind: Any, turns: int) -> None:
    async with in_state(state, turns) as talk:
        talk.engine.say(Failed(0, kind, "the reason"))
        await soon(lambda: talk.view.errors, "the failure")
        (told,) = talk.view.errors
        assert told.startswith("the reason")
        assert ("smaller model" in told) == (kind == "memory")
        assert talk.answers == earlier(turns) + NEWEST.get(state, [])
        if state in ("answering", "stopping"):
            assert talk.reasons[-1] == "failed"
        assert talk.on_disk() == talk.chat.conversation
        assert talk.status == ("choosing" if state in ("loading", "waiting") else "ready")
        # and it goes on: with another model, where this one could not be loaded
        if talk.status == "choosing":
            talk.engine.on(Load, [loaded("other")])
            talk.engine.on(Generate, answering("after all"))
            talk.chat.load("other")
            await soon(lambda: talk.chat.loaded)
            await talk.reach("ready")
        if state == "waiting":
            await soon(lambda: talk.answers == [*earlier(turns), "after all"])
        talk.engine.on(Generate, answering("goes on"))
        assert talk.chat.submit("next")
        await soon(lambda: talk.answers[-1] == "goes on")


@pytest.mark.parametrize("turns", [0, 1])
@pytest.mark.parametrize("state", STATES)
@asynchronous
async def test_an_engine_that_died_costs_no_word_and_the_same_model_is_loaded_again(state: str, turns: int) -> None:
    async with in_state(state, turns) as talk:
        died = talk.engine
        model = None if state == "choosing" else "./model"
        died.die(-9, "loading\nmlx said something")
        await talk.reach("gone")
        (told,) = talk.view.errors
        assert told == (
            "the engine has died (killed, perhaps because memory ran out: mlx said something); "
            "ctrl+r starts it again, the chat is kept"
        )
        assert talk.answers == earlier(turns) + NEWEST.get(state, [])
        if state in ("answering", "stopping"):
            assert talk.reasons[-1] == "failed"
            assert talk.view.calls[-1] == "ended"
        assert talk.on_disk() == talk.chat.conversation
        assert talk.chat.loaded is None
        talk.engines.script[Generate] = answering("after all")
        await talk.chat.restart()
        assert len(talk.engines.all) == 2
        if state == "choosing":
            assert talk.status == "choosing"
            talk.chat.load(None)
        load = talk.engine.sent(Load)[0]
        assert (load.model, load.head) == (model, "./head" if model else None)
        await talk.reach("ready")
        if state == "waiting":
            await soon(lambda: talk.answers == [*earlier(turns), "after all"])
            await talk.reach("ready")
        assert talk.chat.submit("next")
        await soon(lambda: talk.answers[-1] == "after all")
        assert talk.on_disk() == talk.chat.conversation


@pytest.mark.parametrize(
    ("code", "said_of_it"),
    [(-9, "killed, perhaps because memory ran out"), (-11, "signal 11"), (3, "exit code 3"), (0, "exit code 0")],
)
@asynchronous
async def test_how_an_engine_ended_is_told_with_or_without_last_words(code: int, said_of_it: str) -> None:
    for last in ("", "a\nb"):
        async with talking() as talk:
            talk.engine.die(code, last)
            await talk.reach("gone")
            (told,) = talk.view.errors
            words = ": b" if last else ""
            assert told == f"the engine has died ({said_of_it}{words}); ctrl+r starts it again, the chat is kept"


@pytest.mark.parametrize("state", [state for state in STATES if state != "choosing"])
@asynchronous
async def test_an_engine_that_hangs_is_killed_and_replaced(state: str) -> None:
    async with in_state(state) as talk:
        hung = talk.engine
        await talk.chat.restart()
        await soon(lambda: talk.status in ("ready", "answering"), "the new engine")
        assert hung.killed
        assert len(talk.engines.all) == 2
        assert talk.engine.sent(Load)[0].model == "./model"
        assert talk.answers == earlier() + NEWEST.get(state, [])
        assert talk.view.errors == [], "it did not die by itself"
        assert talk.on_disk() == talk.chat.conversation


@asynchronous
async def test_an_engine_that_speaks_nonsense_is_gone_and_can_be_replaced() -> None:
    async with in_state("answering") as talk:
        talk.engine.break_with(NoMessage("not a message of this version: b'oops'"))
        await soon(lambda: talk.status == "gone", "the end of it")
        assert "not a message of this version" in talk.view.errors[0]
        assert talk.answers == ["answer 1", "half"]
        await talk.chat.restart()
        await talk.reach("ready")


@asynchronous
async def test_an_engine_that_is_killed_in_the_middle_of_a_word_is_replaced_in_silence() -> None:
    async with in_state("answering") as talk:
        hung = talk.engine
        hung.kill = lambda: hung.break_with(NoMessage("not a message of this version: b'{\"typ'"))  # type: ignore[method-assign]
        await talk.chat.restart()
        await talk.reach("ready")
        assert talk.view.errors == []


@asynchronous
async def test_an_engine_that_cannot_be_started_is_told_and_tried_again() -> None:
    engines = Engines()
    engines.refusal = OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
    async with talking(engines, Options("./model"), status="gone") as talk:
        assert "the engine cannot be started" in talk.view.errors[0]
        assert os.strerror(errno.ENOMEM) in talk.view.errors[0]
        assert talk.chat.submit("wait for it")
        await talk.chat.restart()
        assert talk.status == "gone"
        engines.refusal = None
        await talk.chat.restart()
        await talk.reach("answering")
        assert talk.engine.sent(Load)[0].model == "./model"
        assert talk.engine.sent(Generate)[0].messages[-1]["content"] == "wait for it"


@asynchronous
async def test_a_chat_that_is_not_saved_is_told_and_goes_on(chats: Path) -> None:
    chats.parent.mkdir(parents=True)
    chats.write_text("a file where the folder should be")
    async with talking() as talk:
        talk.engine.on(Generate, answering("one"))
        talk.chat.submit("first")
        await talk.reach("ready")
        assert "the chat is not saved" in talk.view.errors[0]
        chats.unlink()
        talk.chat.submit("second")
        await talk.reach("ready")
        told = len(talk.view.errors)
        talk.chat.submit("third")
        await talk.reach("ready")
        assert len(talk.view.errors) == told, "all is well again"
        assert talk.on_disk() == talk.chat.conversation
