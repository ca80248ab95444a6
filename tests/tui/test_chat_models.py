"""Other models, and leaving, from every state of a chat."""

from __future__ import annotations

import asyncio

import pytest
from mlxmtp_tui.roles import Options
from mlxmtp_tui.sessions import Session, read

from mlxmtp.worker.messages import Compare, Comparison, Downloading, Finished, Generate, Load
from tests.tui.scripted import Engines, answering, asynchronous, compared, loaded, stats, talking
from tests.tui.states import NEWEST, STATES, earlier, in_state, kept, soon

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
        talk.engine.say(Downloading(0, "first", 1, 2), loaded("first"), to=first)
        await talk.engine.heard()
        assert talk.status == "loading"
        assert talk.chat.live.fetching is None
        talk.engine.say(Downloading(0, "second", 1, 2))
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
        talk.engine.say(Comparison(0, 3, 10, 288, [], []))
        await soon(lambda: talk.chat.live.compared)
        assert talk.chat.live.plain_tps is None
        assert talk.chat.live.speedup(stats()) is None
        talk.engine.say(Finished(0, "stop", {}), to=0)  # of no command at all
        await talk.engine.heard()
        assert talk.status == "measuring"
