"""The chat behind the screen: whatever the engine says or does not say, no answer is lost, no state a dead end."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from mlxmtp_tui.files import MentionError
from mlxmtp_tui.options import ChatOptions
from mlxmtp_tui.sessions import Session

from mlxmtp.engine.request import GenerationOptions
from mlxmtp.worker.messages import Compare, Generate, Load, PromptProgress, Stopped
from tests.tui.harness import (
    ChatHarness,
    Engines,
    ScriptedEngine,
    answering,
    asynchronous,
    compared,
    finished,
    loaded,
    running_chat,
    said,
    saved_chat,
    stats,
)
from tests.tui.states import BUSY, in_state, soon

# -- a turn -----------------------------------------------------------------------------------------------------


@asynchronous
async def test_a_turn_from_the_question_to_the_file() -> None:
    settings = GenerationOptions(temperature=0.5, depth=2, max_tokens=99)
    options = ChatOptions("./model", "./head", system="Be short.", settings=settings, identity="strict")
    async with running_chat(options=options) as harness:
        load = harness.engine.sent(Load)[0]
        assert (load.model, load.head, load.mtp, load.identity) == ("./model", "./head", True, "strict")
        assert harness.chat.submit("Hello 🙂")
        (asked,) = harness.engine.sent(Generate)
        assert asked.settings == settings
        assert asked.messages == [
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": "Hello 🙂"},
        ]
        assert harness.status == "answering"
        assert harness.on_disk().turns[0].typed == "Hello 🙂", "the question is on the disk before the answer comes"
        harness.engine.say(PromptProgress(0, 5, 10))
        await soon(lambda: harness.chat.state.prompt_progress)
        harness.engine.say(said("hm", "thinking"), said("Hi"), finished("Hi", thinking="hm", tokens=3))
        await harness.reach("ready")
        assert harness.view.parts == [["thinking", "hm"], ["text", "Hi"]]
        assert harness.view.calls == ["began", "ended"]
        assert harness.on_disk() == harness.chat.conversation
        newest = harness.chat.conversation.turns[0].answer
        assert newest is not None
        assert (newest.text, newest.thinking, newest.reason, newest.stats) == ("Hi", "hm", "stop", stats(3))
        assert harness.chat.state.prompt_progress is None
        assert len(harness.chat.state.turns) == 1
        harness.chat.submit("And?")
        assert [one["role"] for one in harness.engine.sent(Generate)[1].messages] == [
            *("system", "user", "assistant", "user")
        ]
        assert harness.view.errors == []


@asynchronous
async def test_a_file_goes_into_what_is_sent_and_one_that_cannot_leaves_no_trace(home: Path) -> None:
    (home / "a.txt").write_text("hello")
    (home / "bad.bin").write_bytes(b"\0")
    async with running_chat() as harness:
        harness.engine.on(Generate, answering("ok"))
        with pytest.raises(MentionError):
            harness.chat.submit("see @bad.bin")
        assert harness.chat.conversation.turns == []
        assert not harness.chat.log.has_session
        assert harness.status == "ready"
        harness.chat.submit("see @a.txt")
        turn = harness.chat.conversation.turns[0]
        assert turn.typed == "see @a.txt"
        assert "hello" in turn.sent
        assert harness.engine.sent(Generate)[0].messages[-1]["content"] == turn.sent
        assert harness.on_disk().turns[0].sent == turn.sent
        await harness.reach("ready")


@asynchronous
async def test_settings_and_the_system_prompt_hold_from_the_next_turn_on() -> None:
    async with running_chat() as harness:
        harness.engine.on(Generate, answering("ok"))
        harness.chat.submit("one")
        await harness.reach("ready")
        harness.chat.change_settings(temperature=0.7, seed=3)
        harness.chat.set_system("Be short.")
        harness.chat.submit("two")
        await harness.reach("ready")
        harness.chat.set_system("")
        harness.chat.submit("three")
        await harness.reach("ready")
        asked = harness.engine.sent(Generate)
        assert [one.settings.temperature for one in asked] == [0.0, 0.7, 0.7]
        assert [one.messages[0]["content"] for one in asked] == ["one", "Be short.", "one"]
        assert harness.on_disk().system == ""


@asynchronous
async def test_a_system_prompt_asked_for_holds_for_a_resumed_chat_too() -> None:
    resumed = Session.resume(saved_chat(1))
    async with running_chat(options=ChatOptions(system="Be short."), resumed=resumed) as harness:
        harness.chat.submit("newest")
        assert harness.engine.sent(Generate)[0].messages[0] == {"role": "system", "content": "Be short."}


@asynchronous
async def test_what_came_of_an_answer_is_kept_on_the_disk_every_second() -> None:
    async with running_chat() as harness:
        harness.chat.submit("go")
        partial = harness.chat.log.session.file.with_suffix(".partial")
        for text, seconds, written in (("a", 0.0, "a"), ("b", 0.5, "a"), ("c", 0.7, "abc"), ("d", 0.5, "abc")):
            harness.now += seconds
            before = len(harness.view.parts)
            harness.engine.say(said(text))
            await soon(lambda before=before: len(harness.view.parts) > before)
            harness.chat.save_partial()
            assert f'"content": "{written}"' in partial.read_text(encoding="utf-8"), text
        partial.unlink()
        harness.now += 0.5
        harness.chat.save_partial()
        assert '"content": "abcd"' in partial.read_text(encoding="utf-8"), "the last word, though no other follows"
        partial.unlink()
        harness.now += 10
        harness.chat.save_partial()
        assert not partial.exists(), "nothing has come since"
        harness.engine.say(finished("abcd"))
        await harness.reach("ready")
        assert not partial.exists()
        assert harness.answers == ["abcd"]


@asynchronous
async def test_a_speed_up_is_kept_with_the_turns_after_a_measurement() -> None:
    async with running_chat() as harness:
        harness.engine.on(Generate, answering("ok"))
        harness.engine.on(Compare, [compared()])
        harness.chat.submit("one")
        await harness.reach("ready")
        harness.chat.measure()
        await soon(lambda: harness.view.outcomes)
        harness.chat.submit("two")
        await harness.reach("ready")
        speedups = [turn.answer.speedup for turn in harness.on_disk().turns if turn.answer]
        assert speedups == [None, pytest.approx(61.2 / 41)]


# -- asking when there is no model yet, or no time --------------------------------------------------------------


@asynchronous
async def test_a_question_waits_for_the_model_and_is_asked_then() -> None:
    async with in_state("waiting") as harness:
        assert harness.engine.sent(Generate) == []
        assert harness.view.calls == ["began"]
        harness.engine.say(loaded())
        await harness.reach("answering")
        assert harness.engine.sent(Generate)[0].messages[-1]["content"] == "newest"
        harness.engine.say(finished("at last"))
        await harness.reach("ready")
        assert harness.answers == ["answer 1", "at last"]


@asynchronous
async def test_a_question_waits_for_the_engine_itself() -> None:
    gate = asyncio.Event()
    engines = Engines()

    async def slow() -> ScriptedEngine:
        await gate.wait()
        return await engines()

    harness = ChatHarness(engines, ChatOptions("./model"), None, start=slow)
    starting = asyncio.create_task(harness.chat.start())
    await harness.reach("starting")
    assert harness.chat.submit("early")
    gate.set()
    await starting
    await harness.reach("answering")
    assert harness.engine.sent(Generate)[0].messages[-1]["content"] == "early"
    await harness.chat.close()


@asynchronous
async def test_a_question_asked_before_a_model_is_chosen_waits_for_it() -> None:
    async with in_state("choosing") as harness:
        assert harness.engine.sent(Load) == []
        assert harness.chat.submit("newest")
        harness.engine.on(Load, [loaded("chosen")])
        harness.chat.load("chosen")
        await harness.reach("answering")
        assert harness.engine.sent(Load)[0].model == "chosen"


@pytest.mark.parametrize("state", BUSY)
@asynchronous
async def test_a_question_while_the_engine_is_busy_is_not_taken(state: str) -> None:
    async with in_state(state) as harness:
        turns = list(harness.chat.conversation.turns)
        commands = len(harness.engine.commands)
        assert harness.chat.submit("not now") is False
        assert harness.chat.conversation.turns == turns
        assert harness.view.texts == ["still busy; esc stops it"]
        assert len(harness.engine.commands) == commands


# -- stopping ---------------------------------------------------------------------------------------------------


@asynchronous
async def test_a_stop_keeps_what_came() -> None:
    async with in_state("answering") as harness:
        assert harness.chat.stop()
        assert harness.status == "stopping"
        assert harness.engine.stops == [harness.engine.sent(Generate)[0].id]
        await harness.reach("ready")
        assert (harness.answers, harness.reasons) == (["answer 1", "half"], ["stop", "interrupted"])
        assert harness.on_disk() == harness.chat.conversation
        assert harness.chat.stop() is False, "nothing runs any more"


@asynchronous
async def test_a_stop_before_the_first_word_leaves_an_empty_answer() -> None:
    async with running_chat() as harness:
        harness.chat.submit("go")
        harness.chat.stop()
        await harness.reach("ready")
        assert (harness.answers, harness.reasons) == ([""], ["interrupted"])
        assert harness.view.calls == ["began", "ended"]
        assert harness.on_disk() == harness.chat.conversation


@asynchronous
async def test_a_stop_that_comes_before_the_worker_has_begun_ends_the_turn_too() -> None:
    """worker/serve.py says `Stopped` to a `Generate` that was stopped while it stood in the queue."""
    async with running_chat() as harness:
        harness.engine.deaf = True
        harness.chat.submit("go")
        harness.chat.stop()
        harness.engine.say(Stopped(0))
        await harness.reach("ready")
        assert harness.reasons == ["interrupted"]
        assert harness.view.calls == ["began", "ended"]
        assert harness.on_disk() == harness.chat.conversation


@asynchronous
async def test_a_stop_takes_back_a_question_that_waits() -> None:
    async with in_state("waiting") as harness:
        assert harness.chat.stop()
        assert harness.reasons == ["stop", "interrupted"]
        assert harness.status == "loading"
        harness.engine.say(loaded())
        await harness.reach("ready")
        await harness.engine.heard()
        assert harness.engine.sent(Generate) == []


@pytest.mark.parametrize("state", ["choosing", "loading", "ready", "stopping", "stopping a measurement"])
@asynchronous
async def test_where_nothing_can_be_stopped_a_stop_says_so_and_changes_nothing(state: str) -> None:
    async with in_state(state) as harness:
        stops = list(harness.engine.stops)
        status = harness.status
        assert harness.chat.stop() is False
        assert (harness.engine.stops, harness.status) == (stops, status)
