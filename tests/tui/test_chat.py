"""The chat behind the screen: whatever the engine says or does not say, no answer is lost, no state a dead end."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from mlxmtp_tui.files import MentionError
from mlxmtp_tui.roles import Options
from mlxmtp_tui.sessions import Session

from mlxmtp.engine.request import GenerationOptions
from mlxmtp.worker.messages import Compare, Generate, Load, PromptProgress, Stopped
from tests.tui.scripted import (
    Engines,
    ScriptedEngine,
    Talk,
    answering,
    asynchronous,
    compared,
    finished,
    loaded,
    said,
    saved_chat,
    stats,
    talking,
)
from tests.tui.states import BUSY, in_state, soon

# -- a turn -----------------------------------------------------------------------------------------------------


@asynchronous
async def test_a_turn_from_the_question_to_the_file() -> None:
    settings = GenerationOptions(temperature=0.5, depth=2, max_tokens=99)
    options = Options("./model", "./head", system="Be short.", settings=settings, identity="strict")
    async with talking(options=options) as talk:
        load = talk.engine.sent(Load)[0]
        assert (load.model, load.head, load.mtp, load.identity) == ("./model", "./head", True, "strict")
        assert talk.chat.submit("Hello 🙂")
        (asked,) = talk.engine.sent(Generate)
        assert asked.settings == settings
        assert asked.messages == [
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": "Hello 🙂"},
        ]
        assert talk.status == "answering"
        assert talk.on_disk().turns[0].typed == "Hello 🙂", "the question is on the disk before the answer comes"
        talk.engine.say(PromptProgress(0, 5, 10))
        await soon(lambda: talk.chat.live.prefill)
        talk.engine.say(said("hm", "thinking"), said("Hi"), finished("Hi", thinking="hm", tokens=3))
        await talk.reach("ready")
        assert talk.view.parts == [["thinking", "hm"], ["text", "Hi"]]
        assert talk.view.calls == ["began", "ended"]
        assert talk.on_disk() == talk.chat.conversation
        newest = talk.chat.conversation.turns[0].answer
        assert newest is not None
        assert (newest.text, newest.thinking, newest.reason, newest.stats) == ("Hi", "hm", "stop", stats(3))
        assert talk.chat.live.prefill is None
        assert len(talk.chat.live.turns) == 1
        talk.chat.submit("And?")
        assert [one["role"] for one in talk.engine.sent(Generate)[1].messages] == [
            *("system", "user", "assistant", "user")
        ]
        assert talk.view.errors == []


@asynchronous
async def test_a_file_goes_into_what_is_sent_and_one_that_cannot_leaves_no_trace(home: Path) -> None:
    (home / "a.txt").write_text("hello")
    (home / "bad.bin").write_bytes(b"\0")
    async with talking() as talk:
        talk.engine.on(Generate, answering("ok"))
        with pytest.raises(MentionError):
            talk.chat.submit("see @bad.bin")
        assert talk.chat.conversation.turns == []
        assert not talk.chat.has_session
        assert talk.status == "ready"
        talk.chat.submit("see @a.txt")
        turn = talk.chat.conversation.turns[0]
        assert turn.typed == "see @a.txt"
        assert "hello" in turn.sent
        assert talk.engine.sent(Generate)[0].messages[-1]["content"] == turn.sent
        assert talk.on_disk().turns[0].sent == turn.sent
        await talk.reach("ready")


@asynchronous
async def test_settings_and_the_system_prompt_hold_from_the_next_turn_on() -> None:
    async with talking() as talk:
        talk.engine.on(Generate, answering("ok"))
        talk.chat.submit("one")
        await talk.reach("ready")
        talk.chat.set(temperature=0.7, seed=3)
        talk.chat.instruct("Be short.")
        talk.chat.submit("two")
        await talk.reach("ready")
        talk.chat.instruct("")
        talk.chat.submit("three")
        await talk.reach("ready")
        asked = talk.engine.sent(Generate)
        assert [one.settings.temperature for one in asked] == [0.0, 0.7, 0.7]
        assert [one.messages[0]["content"] for one in asked] == ["one", "Be short.", "one"]
        assert talk.on_disk().system == ""


@asynchronous
async def test_a_system_prompt_asked_for_holds_for_a_resumed_chat_too() -> None:
    resumed = Session.resume(saved_chat(1))
    async with talking(options=Options(system="Be short."), resumed=resumed) as talk:
        talk.chat.submit("newest")
        assert talk.engine.sent(Generate)[0].messages[0] == {"role": "system", "content": "Be short."}


@asynchronous
async def test_what_came_of_an_answer_is_kept_on_the_disk_every_second() -> None:
    async with talking() as talk:
        talk.chat.submit("go")
        partial = talk.chat.session.file.with_suffix(".partial")
        for text, seconds, written in (("a", 0.0, "a"), ("b", 0.5, "a"), ("c", 0.7, "abc"), ("d", 0.5, "abc")):
            talk.now += seconds
            before = len(talk.view.parts)
            talk.engine.say(said(text))
            await soon(lambda before=before: len(talk.view.parts) > before)
            talk.chat.keep()
            assert f'"content": "{written}"' in partial.read_text(encoding="utf-8"), text
        partial.unlink()
        talk.now += 0.5
        talk.chat.keep()
        assert '"content": "abcd"' in partial.read_text(encoding="utf-8"), "the last word, though no other follows"
        partial.unlink()
        talk.now += 10
        talk.chat.keep()
        assert not partial.exists(), "nothing has come since"
        talk.engine.say(finished("abcd"))
        await talk.reach("ready")
        assert not partial.exists()
        assert talk.answers == ["abcd"]


@asynchronous
async def test_a_speed_up_is_kept_with_the_turns_after_a_measurement() -> None:
    async with talking() as talk:
        talk.engine.on(Generate, answering("ok"))
        talk.engine.on(Compare, [compared()])
        talk.chat.submit("one")
        await talk.reach("ready")
        talk.chat.measure()
        await soon(lambda: talk.view.outcomes)
        talk.chat.submit("two")
        await talk.reach("ready")
        speedups = [turn.answer.speedup for turn in talk.on_disk().turns if turn.answer]
        assert speedups == [None, pytest.approx(61.2 / 41)]


# -- asking when there is no model yet, or no time --------------------------------------------------------------


@asynchronous
async def test_a_question_waits_for_the_model_and_is_asked_then() -> None:
    async with in_state("waiting") as talk:
        assert talk.engine.sent(Generate) == []
        assert talk.view.calls == ["began"]
        talk.engine.say(loaded())
        await talk.reach("answering")
        assert talk.engine.sent(Generate)[0].messages[-1]["content"] == "newest"
        talk.engine.say(finished("at last"))
        await talk.reach("ready")
        assert talk.answers == ["answer 1", "at last"]


@asynchronous
async def test_a_question_waits_for_the_engine_itself() -> None:
    gate = asyncio.Event()
    engines = Engines()

    async def slow() -> ScriptedEngine:
        await gate.wait()
        return await engines()

    talk = Talk(engines, Options("./model"), None, start=slow)
    starting = asyncio.create_task(talk.chat.start())
    await talk.reach("starting")
    assert talk.chat.submit("early")
    gate.set()
    await starting
    await talk.reach("answering")
    assert talk.engine.sent(Generate)[0].messages[-1]["content"] == "early"
    await talk.chat.close()


@asynchronous
async def test_a_question_asked_before_a_model_is_chosen_waits_for_it() -> None:
    async with in_state("choosing") as talk:
        assert talk.engine.sent(Load) == []
        assert talk.chat.submit("newest")
        talk.engine.on(Load, [loaded("chosen")])
        talk.chat.load("chosen")
        await talk.reach("answering")
        assert talk.engine.sent(Load)[0].model == "chosen"


@pytest.mark.parametrize("state", BUSY)
@asynchronous
async def test_a_question_while_the_engine_is_busy_is_not_taken(state: str) -> None:
    async with in_state(state) as talk:
        turns = list(talk.chat.conversation.turns)
        commands = len(talk.engine.commands)
        assert talk.chat.submit("not now") is False
        assert talk.chat.conversation.turns == turns
        assert talk.view.texts == ["still busy; esc stops it"]
        assert len(talk.engine.commands) == commands


# -- stopping ---------------------------------------------------------------------------------------------------


@asynchronous
async def test_a_stop_keeps_what_came() -> None:
    async with in_state("answering") as talk:
        assert talk.chat.stop()
        assert talk.status == "stopping"
        assert talk.engine.stops == [talk.engine.sent(Generate)[0].id]
        await talk.reach("ready")
        assert (talk.answers, talk.reasons) == (["answer 1", "half"], ["stop", "interrupted"])
        assert talk.on_disk() == talk.chat.conversation
        assert talk.chat.stop() is False, "nothing runs any more"


@asynchronous
async def test_a_stop_before_the_first_word_leaves_an_empty_answer() -> None:
    async with talking() as talk:
        talk.chat.submit("go")
        talk.chat.stop()
        await talk.reach("ready")
        assert (talk.answers, talk.reasons) == ([""], ["interrupted"])
        assert talk.view.calls == ["began", "ended"]
        assert talk.on_disk() == talk.chat.conversation


@asynchronous
async def test_a_stop_that_comes_before_the_worker_has_begun_ends_the_turn_too() -> None:
    """worker/serve.py says `Stopped` to a `Generate` that was stopped while it stood in the queue."""
    async with talking() as talk:
        talk.engine.deaf = True
        talk.chat.submit("go")
        talk.chat.stop()
        talk.engine.say(Stopped(0))
        await talk.reach("ready")
        assert talk.reasons == ["interrupted"]
        assert talk.view.calls == ["began", "ended"]
        assert talk.on_disk() == talk.chat.conversation


@asynchronous
async def test_a_stop_takes_back_a_question_that_waits() -> None:
    async with in_state("waiting") as talk:
        assert talk.chat.stop()
        assert talk.reasons == ["stop", "interrupted"]
        assert talk.status == "loading"
        talk.engine.say(loaded())
        await talk.reach("ready")
        await talk.engine.heard()
        assert talk.engine.sent(Generate) == []


@pytest.mark.parametrize("state", ["choosing", "loading", "ready", "stopping", "stopping a measurement"])
@asynchronous
async def test_where_nothing_can_be_stopped_a_stop_says_so_and_changes_nothing(state: str) -> None:
    async with in_state(state) as talk:
        stops = list(talk.engine.stops)
        status = talk.status
        assert talk.chat.stop() is False
        assert (talk.engine.stops, talk.status) == (stops, status)
