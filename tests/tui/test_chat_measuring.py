"""Measurements in the chat behind the screen, and what was said by those that were left."""

from __future__ import annotations

import pytest
from mlxmtp_tui.sessions import Session

from mlxmtp.worker.messages import Compare, Downloading, Failed, Generate, Load, PromptProgress, Stopped
from tests.tui.scripted import answering, asynchronous, compared, finished, loaded, said, talking
from tests.tui.states import in_state, soon

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


# -- events of what was left ------------------------------------------------------------------------------------


@asynchronous
async def test_events_of_an_older_command_are_ignored() -> None:
    async with in_state("answering") as talk:
        old = talk.engine.sent(Generate)[0].id
        load = talk.engine.sent(Load)[0].id
        talk.chat.clear()
        talk.chat.submit("new")
        newest = talk.engine.sent(Generate)[1].id
        late = [said("late"), finished("late"), Failed(0, "failed", "late"), Stopped(0), Downloading(0, "late", 1, 2)]
        for event in [*late, loaded("late"), compared(), PromptProgress(0, 1, 2)]:
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
        talk.engine.say(PromptProgress(0, 1, 2))
        await soon(lambda: talk.chat.live.prefill)
        talk.now += 19
        assert talk.chat.live.silent_s == 0.0
        talk.now += 2
        assert talk.chat.live.silent_s == 21
