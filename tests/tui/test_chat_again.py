"""Answering again, taking back, and other chats, from every state of a chat."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlxmtp_tui.conversation import Conversation
from mlxmtp_tui.sessions import Session, read

from mlxmtp.worker.messages import Generate
from tests.tui.harness import answering, asynchronous, finished, loaded, running_chat, said, saved_chat
from tests.tui.states import BUSY, NEWEST, STATES, earlier, in_state, kept

# -- again, back, away ------------------------------------------------------------------------------------------


@asynchronous
async def test_a_retry_asks_the_last_question_again_without_its_answer() -> None:
    async with in_state("ready", turns=2) as harness:
        harness.chat.retry()
        assert harness.view.calls == ["changed"]
        assert [one["content"] for one in harness.engine.sent(Generate)[0].messages] == [
            *("question 1", "answer 1", "question 2")
        ]
        harness.engine.say(*answering("better"))
        await harness.reach("ready")
        assert harness.answers == ["answer 1", "better"]
        assert harness.on_disk() == harness.chat.conversation


@asynchronous
async def test_a_retry_while_loading_waits_and_is_asked_once() -> None:
    async with in_state("waiting") as harness:
        harness.chat.retry()
        harness.engine.say(loaded())
        await harness.reach("answering")
        await harness.engine.heard()
        assert len(harness.engine.sent(Generate)) == 1
        assert harness.engine.sent(Generate)[0].messages[-1]["content"] == "newest"
        assert len(harness.chat.conversation.turns) == 2


@pytest.mark.parametrize("state", ["choosing", *BUSY])
@asynchronous
async def test_no_retry_and_nothing_taken_back_where_that_cannot_be(state: str) -> None:
    async with in_state(state) as harness:
        turns = list(harness.chat.conversation.turns)
        harness.chat.retry()
        assert harness.view.texts == ["not now; esc stops what runs"]
        if state != "choosing":
            assert harness.chat.undo() is None
        assert harness.chat.conversation.turns == turns


@asynchronous
async def test_an_empty_chat_has_nothing_to_answer_again_or_to_take_back() -> None:
    async with running_chat() as harness:
        harness.chat.retry()
        assert harness.chat.undo() is None
        assert harness.view.texts == ["nothing to answer again", "nothing to take back"]
        assert not harness.chat.log.has_session


@asynchronous
async def test_the_last_turn_is_taken_back_as_it_was_typed(home: Path) -> None:
    (home / "a.txt").write_text("hello")
    async with in_state("ready") as harness:
        harness.engine.on(Generate, answering("ok"))
        harness.chat.submit("see @a.txt")
        await harness.reach("ready")
        assert harness.chat.undo() == "see @a.txt"
        assert harness.answers == ["answer 1"]
        assert harness.on_disk() == harness.chat.conversation
        assert harness.chat.undo() == "question 1"
        assert harness.chat.conversation.messages() == []


@asynchronous
async def test_a_question_that_waits_is_taken_back_and_not_asked() -> None:
    async with in_state("waiting") as harness:
        assert harness.chat.undo() == "newest"
        harness.engine.say(loaded())
        await harness.reach("ready")
        await harness.engine.heard()
        assert harness.engine.sent(Generate) == []


@pytest.mark.parametrize("turns", [0, 1])
@pytest.mark.parametrize("state", STATES)
@asynchronous
async def test_a_new_chat_leaves_the_old_one_whole_whatever_ran(state: str, turns: int) -> None:
    async with in_state(state, turns) as harness:
        old = harness.chat.log.session.file
        harness.chat.set_system("Be short.")
        harness.chat.clear()
        assert harness.chat.conversation == Conversation("Be short.")
        assert kept(old) == earlier(turns) + NEWEST.get(state, [])
        running = harness.engine.commands[-1].id if harness.engine.commands else 0
        if state == "loading":
            harness.engine.say(loaded())
            await harness.reach("ready")
        elif state in ("answering", "stopping"):
            harness.engine.say(said("late"), finished("late"), to=running)
            await harness.engine.heard()
            assert harness.chat.conversation.turns == []
        assert kept(old) == earlier(turns) + NEWEST.get(state, [])
        if old.exists():
            Session.resume(old)[0].close()  # nobody holds it any more
        if harness.status == "ready":
            harness.engine.on(Generate, answering("new"))
            harness.chat.submit("first of the new")
            await harness.reach("ready")
            assert harness.answers == ["new"]
            assert harness.chat.log.session.file != old
            assert harness.on_disk() == harness.chat.conversation


@asynchronous
async def test_another_chat_takes_the_place_of_this_one() -> None:
    other = saved_chat(3)
    async with in_state("answering") as harness:
        mine = harness.chat.log.session.file
        harness.chat.open(*Session.resume(other))
        assert harness.answers == earlier(3)
        assert len(harness.chat.state.turns) == 3, "the plots go on where that chat was"
        assert harness.status == "ready"
        harness.engine.on(Generate, answering("4"))
        harness.chat.submit("question 4")
        await harness.reach("ready")
        assert len(read(other)[1].turns) == 4
        assert [turn.answer.text for turn in read(mine)[1].turns if turn.answer] == ["answer 1", "half"]
