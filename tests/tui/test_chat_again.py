"""Answering again, taking back, and other chats, from every state of a chat."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlxmtp_tui.conversation import Conversation
from mlxmtp_tui.sessions import Session, read

from mlxmtp.worker.messages import Generate
from tests.tui.scripted import answering, asynchronous, finished, loaded, said, saved_chat, talking
from tests.tui.states import BUSY, NEWEST, STATES, earlier, in_state, kept

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
