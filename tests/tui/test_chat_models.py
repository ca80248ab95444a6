"""Other models, and leaving, from every state of a chat."""

from __future__ import annotations

import asyncio

import pytest
from mlxmtp_tui.options import ChatOptions
from mlxmtp_tui.sessions import Session, read

from mlxmtp.worker.messages import Compare, Comparison, Downloading, Finished, Generate, Load
from tests.tui.harness import Engines, answering, asynchronous, compared, loaded, running_chat, stats
from tests.tui.states import NEWEST, STATES, earlier, in_state, kept, soon

# -- other models -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("turns", [0, 1])
@pytest.mark.parametrize("state", STATES)
@asynchronous
async def test_another_model_is_loaded_from_every_state_and_no_answer_is_lost(state: str, turns: int) -> None:
    async with in_state(state, turns) as harness:
        harness.engine.on(Load, [])
        harness.chat.load("owner/other", head="owner/head")
        assert harness.status == "loading"
        assert harness.chat.loaded is None
        load = harness.engine.sent(Load)[-1]
        assert (load.model, load.head) == ("owner/other", "owner/head")
        if state in ("answering", "stopping"):
            await soon(lambda: harness.answers[-1] == "half", "what came of the answer")
            assert harness.view.calls[-1] == "ended"
        assert harness.answers == earlier(turns) + NEWEST.get(state, [])
        if state in ("answering", "measuring"):
            assert harness.engine.stops, "or the new model would wait for the old one's work"
        harness.engine.on(Generate, answering("from the other"))
        harness.engine.say(loaded("owner/other"))
        await harness.reach("ready")
        if state == "waiting":
            await soon(lambda: harness.answers == [*earlier(turns), "from the other"])
        assert harness.on_disk() == harness.chat.conversation
        if turns:
            assert read(harness.chat.log.session.file)[0]["model"] == "owner/other"
        await harness.chat.restart()
        assert harness.engine.sent(Load)[0].model == "owner/other", "a restart loads the newest choice"
        assert harness.engine.sent(Load)[0].head == "owner/head"


@asynchronous
async def test_a_chat_samples_as_its_model_recommends_except_for_what_the_user_chose() -> None:
    async with running_chat(options=ChatOptions(sampling={"top_k": 5})) as harness:
        assert harness.chat.settings.top_k == 5
        cases = [
            ({"temperature": 0.6, "top_k": 20}, (0.6, 1.0, 5), "temperature 0.6"),
            ({"top_p": 0.8, "temperature": 1.0}, (1.0, 0.8, 5), "top-p 0.8, temperature 1"),
            ({}, (0.0, 1.0, 5), None),
        ]
        for sampling, expected, words in cases:
            harness.view.texts.clear()
            harness.engine.on(Load, [loaded("other", sampling=sampling)])
            harness.chat.load("other")
            await harness.reach("ready")
            settings = harness.chat.settings
            assert (settings.temperature, settings.top_p, settings.top_k) == expected, sampling
            assert harness.view.texts == ([f"sampling as the model recommends: {words}"] if words else []), sampling
        harness.chat.change_settings(temperature=0.3)
        harness.engine.on(Load, [loaded("other", sampling={"temperature": 0.6})])
        harness.chat.load("other")
        await harness.reach("ready")
        assert harness.chat.settings.temperature == 0.3


@asynchronous
async def test_what_was_measured_on_one_model_is_not_shown_for_another() -> None:
    async with running_chat() as harness:
        harness.engine.on(Compare, [compared()])
        harness.chat.measure()
        await soon(lambda: harness.view.outcomes)
        harness.chat.load("other")
        assert harness.chat.state.plain_tps is None
        await harness.reach("ready")
        assert harness.chat.state.plain_tps is None


@asynchronous
async def test_only_the_model_that_was_asked_for_last_counts() -> None:
    engines = Engines({Load: []})
    async with running_chat(engines, ChatOptions("first"), status="loading") as harness:
        first = harness.engine.sent(Load)[0].id
        harness.chat.load("second")
        harness.engine.say(Downloading(0, "first", 1, 2), loaded("first"), to=first)
        await harness.engine.heard()
        assert harness.status == "loading"
        assert harness.chat.state.download is None
        harness.engine.say(Downloading(0, "second", 1, 2))
        await soon(lambda: harness.chat.state.download)
        harness.engine.say(loaded("second"))
        await harness.reach("ready")
        assert harness.chat.loaded is not None
        assert harness.chat.loaded.name == "second"


@pytest.mark.parametrize("how", ["died", "never started"])
@asynchronous
async def test_a_model_chosen_while_there_is_no_engine_is_not_loaded_by_nobody(how: str) -> None:
    engines = Engines()
    if how == "never started":
        engines.refusal = OSError("no")
    async with running_chat(engines, status="gone" if how == "never started" else "ready") as harness:
        if how == "died":
            harness.engine.die()
            await harness.reach("gone")
        engines.refusal = None
        engines_before = len(engines.all)
        harness.chat.load("other")
        for _ in range(10):
            await asyncio.sleep(0)
        # either an engine is started for it, or the chat still says that there is none
        assert harness.status == "gone" or len(engines.all) > engines_before
        if harness.status == "gone":
            await harness.chat.restart()
        await harness.reach("ready")
        assert [load.model for load in harness.engine.sent(Load)] == ["other"]


# -- leaving ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("turns", [0, 1])
@pytest.mark.parametrize("state", STATES)
@asynchronous
async def test_leaving_keeps_what_came_and_ends_the_engine(state: str, turns: int) -> None:
    async with in_state(state, turns) as harness:
        file = harness.chat.log.session.file
        await harness.chat.close()
        assert harness.engine.closed
        assert harness.view.errors == []
        assert kept(file) == earlier(turns) + NEWEST.get(state, [])
        if file.exists():
            Session.resume(file)[0].close()  # nobody holds it any more


@asynchronous
async def test_leaving_after_the_engine_died() -> None:
    async with running_chat() as harness:
        harness.engine.die()
        await harness.reach("gone")


@asynchronous
async def test_an_outcome_without_repeats_is_not_shown_as_one() -> None:
    async with in_state("measuring") as harness:
        harness.engine.say(Comparison(0, 3, 10, 288, [], []))
        await soon(lambda: harness.chat.state.comparison)
        assert harness.chat.state.plain_tps is None
        assert harness.chat.state.speedup(stats()) is None
        harness.engine.say(Finished(0, "stop", {}), to=0)  # of no command at all
        await harness.engine.heard()
        assert harness.status == "measuring"
