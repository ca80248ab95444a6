"""The chat behind the screen: whatever the engine says or does not say, no answer is lost, no state a dead end."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from mlxmtp_tui.conversation import Conversation
from mlxmtp_tui.files import MentionError
from mlxmtp_tui.roles import Options
from mlxmtp_tui.sessions import Session, read

from mlxmtp.worker.lines import ProtocolError as NoMessage
from mlxmtp.worker.messages import (
    Compare,
    Compared,
    Failed,
    Fetching,
    Finished,
    Generate,
    Load,
    Prefilled,
    Settings,
    Stopped,
)
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
    until,
)

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
    await until(condition, what, within=4.0)


@asynccontextmanager
async def in_state(state: str, turns: int = 1) -> AsyncIterator[Talk]:
    """A chat of `turns` turns, "answer 1" and so on, brought to a state; where a turn runs, "half" has come of it."""
    engines = Engines()
    options = Options("./model", head="./head", choose=False)
    if state in ("loading", "waiting"):
        engines.script[Load] = []
    if state == "choosing":
        options = Options(choose=True)
    resumed = Session.resume(saved_chat(turns)) if turns else None
    status = {"waiting": "loading", "choosing": "choosing", "loading": "loading"}.get(state, "ready")
    async with talking(engines, options, resumed=resumed, status=status) as talk:
        if state in ("waiting", "answering", "stopping"):
            assert talk.chat.submit("newest")
        if state in MEASURED:
            talk.chat.measure()
        if state in ("answering", "stopping"):
            talk.engine.say(said("half"))
            await soon(lambda: talk.view.parts, "what came of the answer")
        if state.startswith("stopping"):
            talk.engine.deaf = True
            assert talk.chat.stop()
        engines.script[Load] = [loaded()]  # engines to come load at once
        yield talk


def kept(file: Path) -> list[str | None]:
    """What the file of a chat holds of its answers; a chat without a turn has none."""
    turns = read(file)[1].turns if file.exists() else []
    return [turn.answer.text if turn.answer else None for turn in turns]


def earlier(turns: int = 1) -> list[str]:
    return [f"answer {i + 1}" for i in range(turns)]


# -- a turn -----------------------------------------------------------------------------------------------------


@asynchronous
async def test_a_turn_from_the_question_to_the_file() -> None:
    settings = Settings(temperature=0.5, depth=2, max_tokens=99)
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
        talk.engine.say(Prefilled(0, 5, 10))
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

    talk = Talk(engines, Options("./model"), None)
    talk.chat._link._start = slow
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


# -- again, back, away ------------------------------------------------------------------------------------------


@asynchronous
async def test_a_retry_asks_the_last_question_again_without_its_answer() -> None:
    async with in_state("ready", turns=2) as talk:
        talk.chat.retry()
        assert talk.view.calls == ["changed"]
        assert [one["content"] for one in talk.engine.sent(Generate)[0].messages] == [
            *("question 1", "answer 1", "question 2")
        ]
        talk.engine.say(*answering("better"))
        await talk.reach("ready")
        assert talk.answers == ["answer 1", "better"]
        assert talk.on_disk() == talk.chat.conversation


@asynchronous
async def test_a_retry_while_loading_waits_and_is_asked_once() -> None:
    async with in_state("waiting") as talk:
        talk.chat.retry()
        talk.engine.say(loaded())
        await talk.reach("answering")
        await talk.engine.heard()
        assert len(talk.engine.sent(Generate)) == 1
        assert talk.engine.sent(Generate)[0].messages[-1]["content"] == "newest"
        assert len(talk.chat.conversation.turns) == 2


@pytest.mark.parametrize("state", ["choosing", *BUSY])
@asynchronous
async def test_no_retry_and_nothing_taken_back_where_that_cannot_be(state: str) -> None:
    async with in_state(state) as talk:
        turns = list(talk.chat.conversation.turns)
        talk.chat.retry()
        assert talk.view.texts == ["not now; esc stops what runs"]
        if state != "choosing":
            assert talk.chat.take_back() is None
        assert talk.chat.conversation.turns == turns


@asynchronous
async def test_an_empty_chat_has_nothing_to_answer_again_or_to_take_back() -> None:
    async with talking() as talk:
        talk.chat.retry()
        assert talk.chat.take_back() is None
        assert talk.view.texts == ["nothing to answer again", "nothing to take back"]
        assert not talk.chat.has_session


@asynchronous
async def test_the_last_turn_is_taken_back_as_it_was_typed(home: Path) -> None:
    (home / "a.txt").write_text("hello")
    async with in_state("ready") as talk:
        talk.engine.on(Generate, answering("ok"))
        talk.chat.submit("see @a.txt")
        await talk.reach("ready")
        assert talk.chat.take_back() == "see @a.txt"
        assert talk.answers == ["answer 1"]
        assert talk.on_disk() == talk.chat.conversation
        assert talk.chat.take_back() == "question 1"
        assert talk.chat.conversation.messages() == []


@asynchronous
async def test_a_question_that_waits_is_taken_back_and_not_asked() -> None:
    async with in_state("waiting") as talk:
        assert talk.chat.take_back() == "newest"
        talk.engine.say(loaded())
        await talk.reach("ready")
        await talk.engine.heard()
        assert talk.engine.sent(Generate) == []


@pytest.mark.parametrize("turns", [0, 1])
@pytest.mark.parametrize("state", STATES)
@asynchronous
async def test_a_new_chat_leaves_the_old_one_whole_whatever_ran(state: str, turns: int) -> None:
    async with in_state(state, turns) as talk:
        old = talk.chat.session.file
        talk.chat.instruct("Be short.")
        talk.chat.clear()
        assert talk.chat.conversation == Conversation("Be short.")
        assert kept(old) == earlier(turns) + NEWEST.get(state, [])
        running = talk.engine.commands[-1].id if talk.engine.commands else 0
        if state == "loading":
            talk.engine.say(loaded())
            await talk.reach("ready")
        elif state in ("answering", "stopping"):
            talk.engine.say(said("late"), finished("late"), to=running)
            await talk.engine.heard()
            assert talk.chat.conversation.turns == []
        assert kept(old) == earlier(turns) + NEWEST.get(state, [])
        if old.exists():
            Session.resume(old)[0].close()  # nobody holds it any more
        if talk.status == "ready":
            talk.engine.on(Generate, answering("new"))
            talk.chat.submit("first of the new")
            await talk.reach("ready")
            assert talk.answers == ["new"]
            assert talk.chat.session.file != old
            assert talk.on_disk() == talk.chat.conversation


@asynchronous
async def test_another_chat_takes_the_place_of_this_one() -> None:
    other = saved_chat(3)
    async with in_state("answering") as talk:
        mine = talk.chat.session.file
        talk.chat.open(*Session.resume(other))
        assert talk.answers == earlier(3)
        assert len(talk.chat.live.turns) == 3, "the plots go on where that chat was"
        assert talk.status == "ready"
        talk.engine.on(Generate, answering("4"))
        talk.chat.submit("question 4")
        await talk.reach("ready")
        assert len(read(other)[1].turns) == 4
        assert [turn.answer.text for turn in read(mine)[1].turns if turn.answer] == ["answer 1", "half"]


# -- measuring --------------------------------------------------------------------------------------------------


@asynchronous
async def test_a_measurement_goes_on_from_the_chat_and_ends_with_an_outcome() -> None:
    async with in_state("ready") as talk:
        talk.chat.measure()
        assert talk.status == "measuring"
        (command,) = talk.engine.sent(Compare)
        assert [one["role"] for one in command.messages] == ["user", "assistant", "user"]
        talk.engine.say(compared(96))
        await soon(lambda: talk.chat.live.compared)
        assert talk.status == "measuring"
        assert talk.view.outcomes == []
        talk.engine.say(compared())
        await talk.reach("ready")
        assert [one.total for one in talk.view.outcomes] == [288]
        assert talk.chat.live.plain_tps == 41.0
        assert len(talk.chat.conversation.turns) == 1, "it is no part of the chat"


@asynchronous
async def test_a_measurement_of_an_empty_chat_has_a_prompt_of_its_own() -> None:
    async with talking() as talk:
        talk.chat.measure()
        assert talk.engine.sent(Compare)[0].messages[-1]["role"] == "user"
        assert talk.chat.conversation.turns == []


@asynchronous
async def test_a_stopped_measurement_leaves_nothing_behind() -> None:
    async with in_state("measuring") as talk:
        turns = list(talk.chat.conversation.turns)
        assert talk.chat.stop()
        await talk.reach("ready")
        assert talk.chat.conversation.turns == turns
        assert talk.on_disk().turns == turns
        assert talk.view.calls == []


@pytest.mark.parametrize("state", ["choosing", "loading", "answering", "stopping", "measuring"])
@asynchronous
async def test_there_is_no_measurement_without_a_model_at_rest(state: str) -> None:
    async with in_state(state) as talk:
        before = len(talk.engine.sent(Compare))
        talk.chat.measure()
        assert talk.view.texts == ["no model is loaded" if state == "choosing" else "not now; esc stops what runs"]
        assert len(talk.engine.sent(Compare)) == before


@pytest.mark.parametrize("end", ["died", "failed", "left"])
@asynchronous
async def test_what_was_said_in_one_chat_is_no_answer_in_another(end: str) -> None:
    """A question without an answer stands at the end of the other one; a measurement on it is broken off."""
    other = Session.new("demo")
    other.asked("unanswered", "unanswered")
    other.close()
    async with in_state("answering") as talk:
        talk.chat.open(*Session.resume(other.file))
        talk.chat.measure()
        talk.engine.deaf = True
        talk.chat.stop()
        if end == "died":
            talk.engine.die()
            await talk.reach("gone")
        elif end == "failed":
            talk.engine.say(Failed(0, "memory", "none left"))
            await talk.reach("ready")
        else:
            talk.chat.clear()
        assert "half" not in other.file.read_text(encoding="utf-8")


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


# -- events of what was left ------------------------------------------------------------------------------------


@asynchronous
async def test_events_of_an_older_command_are_ignored() -> None:
    async with in_state("answering") as talk:
        old = talk.engine.sent(Generate)[0].id
        load = talk.engine.sent(Load)[0].id
        talk.chat.clear()
        talk.chat.submit("new")
        newest = talk.engine.sent(Generate)[1].id
        late = [said("late"), finished("late"), Failed(0, "failed", "late"), Stopped(0), Fetching(0, "late", 1, 2)]
        for event in [*late, loaded("late"), compared(), Prefilled(0, 1, 2)]:
            talk.engine.say(event, to=old)
            talk.engine.say(event, to=load)
        await talk.engine.heard()
        assert talk.view.parts == [["text", "half"]], "of the turn that was left"
        assert talk.view.errors == []
        assert talk.view.outcomes == []
        assert talk.status == "answering"
        assert talk.answers == [None]
        assert talk.chat.live.prefill is None
        talk.engine.say(*answering("mine"), to=newest)
        await talk.reach("ready")
        assert talk.answers == ["mine"]


@asynchronous
async def test_the_last_words_of_an_engine_that_was_replaced_are_ignored() -> None:
    async with in_state("answering") as talk:
        old = talk.engine
        await talk.chat.restart()
        await talk.reach("ready")
        old.say(said("late"), finished("late"))
        talk.chat.submit("next")
        await talk.engine.heard()
        assert talk.status == "answering"
        assert talk.answers == ["answer 1", "half", None]


@asynchronous
async def test_every_word_is_a_sign_of_life() -> None:
    async with talking() as talk:
        talk.chat.submit("go")
        talk.now += 19
        talk.engine.say(Prefilled(0, 1, 2))
        await soon(lambda: talk.chat.live.prefill)
        talk.now += 19
        assert talk.chat.live.silent_s == 0.0
        talk.now += 2
        assert talk.chat.live.silent_s == 21


# -- other models -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("turns", [0, 1])
@pytest.mark.parametrize("state", STATES)
@asynchronous
async def test_another_model_is_loaded_from_every_state_and_no_answer_is_lost(state: str, turns: int) -> None:
    async with in_state(state, turns) as talk:
        talk.engine.on(Load, [])
        talk.chat.load("owner/other", head="owner/head")
        assert talk.status == "loading"
        assert talk.chat.loaded is None
        load = talk.engine.sent(Load)[-1]
        assert (load.model, load.head) == ("owner/other", "owner/head")
        if state in ("answering", "stopping"):
            await soon(lambda: talk.answers[-1] == "half", "what came of the answer")
            assert talk.view.calls[-1] == "ended"
        assert talk.answers == earlier(turns) + NEWEST.get(state, [])
        if state in ("answering", "measuring"):
            assert talk.engine.stops, "or the new model would wait for the old one's work"
        talk.engine.on(Generate, answering("from the other"))
        talk.engine.say(loaded("owner/other"))
        await talk.reach("ready")
        if state == "waiting":
            await soon(lambda: talk.answers == [*earlier(turns), "from the other"])
        assert talk.on_disk() == talk.chat.conversation
        if turns:
            assert read(talk.chat.session.file)[0]["model"] == "owner/other"
        await talk.chat.restart()
        assert talk.engine.sent(Load)[0].model == "owner/other", "a restart loads the newest choice"
        assert talk.engine.sent(Load)[0].head == "owner/head"


@asynchronous
async def test_what_was_measured_on_one_model_is_not_shown_for_another() -> None:
    async with talking() as talk:
        talk.engine.on(Compare, [compared()])
        talk.chat.measure()
        await soon(lambda: talk.view.outcomes)
        talk.chat.load("other")
        assert talk.chat.live.plain_tps is None
        await talk.reach("ready")
        assert talk.chat.live.plain_tps is None


@asynchronous
async def test_only_the_model_that_was_asked_for_last_counts() -> None:
    engines = Engines({Load: []})
    async with talking(engines, Options("first"), status="loading") as talk:
        first = talk.engine.sent(Load)[0].id
        talk.chat.load("second")
        talk.engine.say(Fetching(0, "first", 1, 2), loaded("first"), to=first)
        await talk.engine.heard()
        assert talk.status == "loading"
        assert talk.chat.live.fetching is None
        talk.engine.say(Fetching(0, "second", 1, 2))
        await soon(lambda: talk.chat.live.fetching)
        talk.engine.say(loaded("second"))
        await talk.reach("ready")
        assert talk.chat.loaded is not None
        assert talk.chat.loaded.name == "second"


@pytest.mark.parametrize("how", ["died", "never started"])
@asynchronous
async def test_a_model_chosen_while_there_is_no_engine_is_not_loaded_by_nobody(how: str) -> None:
    engines = Engines()
    if how == "never started":
        engines.refusal = OSError("no")
    async with talking(engines, status="gone" if how == "never started" else "ready") as talk:
        if how == "died":
            talk.engine.die()
            await talk.reach("gone")
        engines.refusal = None
        engines_before = len(engines.all)
        talk.chat.load("other")
        for _ in range(10):
            await asyncio.sleep(0)
        # either an engine is started for it, or the chat still says that there is none
        assert talk.status == "gone" or len(engines.all) > engines_before
        if talk.status == "gone":
            await talk.chat.restart()
        await talk.reach("ready")
        assert [load.model for load in talk.engine.sent(Load)] == ["other"]


# -- leaving ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("turns", [0, 1])
@pytest.mark.parametrize("state", STATES)
@asynchronous
async def test_leaving_keeps_what_came_and_ends_the_engine(state: str, turns: int) -> None:
    async with in_state(state, turns) as talk:
        file = talk.chat.session.file
        await talk.chat.close()
        assert talk.engine.closed
        assert talk.view.errors == []
        assert kept(file) == earlier(turns) + NEWEST.get(state, [])
        if file.exists():
            Session.resume(file)[0].close()  # nobody holds it any more


@asynchronous
async def test_leaving_after_the_engine_died() -> None:
    async with talking() as talk:
        talk.engine.die()
        await talk.reach("gone")


@asynchronous
async def test_an_outcome_without_repeats_is_not_shown_as_one() -> None:
    async with in_state("measuring") as talk:
        talk.engine.say(Compared(0, 3, 10, 288, [], []))
        await soon(lambda: talk.chat.live.compared)
        assert talk.chat.live.plain_tps is None
        assert talk.chat.live.speedup(stats()) is None
        talk.engine.say(Finished(0, "stop", {}), to=0)  # of no command at all
        await talk.engine.heard()
        assert talk.status == "measuring"
