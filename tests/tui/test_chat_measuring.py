"""Measurements in the chat behind the screen, and what was said by those that were left."""

from __future__ import annotations

import pytest
from mlxmtp_tui.sessions import Session

from mlxmtp.worker.messages import Compare, Downloading, Failed, Generate, Load, PromptProgress, Stopped
from tests.tui.harness import answering, asynchronous, compared, finished, loaded, running_chat, said
from tests.tui.states import in_state, soon

# -- measuring --------------------------------------------------------------------------------------------------


@asynchronous
async def test_a_measurement_goes_on_from_the_chat_and_ends_with_an_outcome() -> None:
    async with in_state("ready") as harness:
        harness.chat.measure()
        assert harness.status == "measuring"
        (command,) = harness.engine.sent(Compare)
        assert [one["role"] for one in command.messages] == ["user", "assistant", "user"]
        harness.engine.say(compared(96))
        await soon(lambda: harness.chat.state.comparison)
        assert harness.status == "measuring"
        assert harness.view.outcomes == []
        harness.engine.say(compared())
        await harness.reach("ready")
        assert [one.total for one in harness.view.outcomes] == [288]
        assert harness.chat.state.plain_tps == 41.0
        assert len(harness.chat.conversation.turns) == 1, "it is no part of the chat"


@asynchronous
async def test_a_measurement_of_an_empty_chat_has_a_prompt_of_its_own() -> None:
    async with running_chat() as harness:
        harness.chat.measure()
        assert harness.engine.sent(Compare)[0].messages[-1]["role"] == "user"
        assert harness.chat.conversation.turns == []


@asynchronous
async def test_a_stopped_measurement_leaves_nothing_behind() -> None:
    async with in_state("measuring") as harness:
        turns = list(harness.chat.conversation.turns)
        assert harness.chat.stop()
        await harness.reach("ready")
        assert harness.chat.conversation.turns == turns
        assert harness.on_disk().turns == turns
        assert harness.view.calls == []


@pytest.mark.parametrize("state", ["choosing", "loading", "answering", "stopping", "measuring"])
@asynchronous
async def test_there_is_no_measurement_without_a_model_at_rest(state: str) -> None:
    async with in_state(state) as harness:
        before = len(harness.engine.sent(Compare))
        harness.chat.measure()
        assert harness.view.texts == ["no model is loaded" if state == "choosing" else "not now; esc stops what runs"]
        assert len(harness.engine.sent(Compare)) == before


@pytest.mark.parametrize("end", ["died", "failed", "left"])
@asynchronous
async def test_what_was_said_in_one_chat_is_no_answer_in_another(end: str) -> None:
    """A question without an answer stands at the end of the other one; a measurement on it is broken off."""
    other = Session.new("demo")
    other.write_user("unanswered", "unanswered")
    other.close()
    async with in_state("answering") as harness:
        harness.chat.open(*Session.resume(other.file))
        harness.chat.measure()
        harness.engine.deaf = True
        harness.chat.stop()
        if end == "died":
            harness.engine.die()
            await harness.reach("gone")
        elif end == "failed":
            harness.engine.say(Failed(0, "memory", "none left"))
            await harness.reach("ready")
        else:
            harness.chat.clear()
        assert "half" not in other.file.read_text(encoding="utf-8")


# -- events of what was left ------------------------------------------------------------------------------------


@asynchronous
async def test_events_of_an_older_command_are_ignored() -> None:
    async with in_state("answering") as harness:
        old = harness.engine.sent(Generate)[0].id
        load = harness.engine.sent(Load)[0].id
        harness.chat.clear()
        harness.chat.submit("new")
        newest = harness.engine.sent(Generate)[1].id
        late = [said("late"), finished("late"), Failed(0, "failed", "late"), Stopped(0), Downloading(0, "late", 1, 2)]
        for event in [*late, loaded("late"), compared(), PromptProgress(0, 1, 2)]:
            harness.engine.say(event, to=old)
            harness.engine.say(event, to=load)
        await harness.engine.heard()
        assert harness.view.parts == [["text", "half"]], "of the turn that was left"
        assert harness.view.errors == []
        assert harness.view.outcomes == []
        assert harness.status == "answering"
        assert harness.answers == [None]
        assert harness.chat.state.prompt_progress is None
        harness.engine.say(*answering("mine"), to=newest)
        await harness.reach("ready")
        assert harness.answers == ["mine"]


@asynchronous
async def test_the_last_words_of_an_engine_that_was_replaced_are_ignored() -> None:
    async with in_state("answering") as harness:
        old = harness.engine
        await harness.chat.restart()
        await harness.reach("ready")
        old.say(said("late"), finished("late"))
        harness.chat.submit("next")
        await harness.engine.heard()
        assert harness.status == "answering"
        assert harness.answers == ["answer 1", "half", None]


@asynchronous
async def test_every_word_is_a_sign_of_life() -> None:
    async with running_chat() as harness:
        harness.chat.submit("go")
        harness.now += 19
        harness.engine.say(PromptProgress(0, 1, 2))
        await soon(lambda: harness.chat.state.prompt_progress)
        harness.now += 19
        assert harness.chat.state.silence_s == 0.0
        harness.now += 2
        assert harness.chat.state.silence_s == 21
