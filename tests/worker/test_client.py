"""The client of the engine's process: events by command, deaths, restarts; scripted and real processes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from mlxmtp.engine.request import GenerationOptions
from mlxmtp.worker.client import EngineClient, EngineStartError, Reply
from mlxmtp.worker.lines import ProtocolError
from mlxmtp.worker.messages import (
    Died,
    Event,
    Failed,
    Finished,
    Generate,
    ListModels,
    Load,
    Loaded,
    Models,
    PromptProgress,
    Stop,
    TurnDelta,
    Warned,
)
from mlxmtp.worker.process import WorkerProcess
from tests.scripted_engine import Engines, ScriptedEngine, asynchronous, finished, said, until
from tests.worker.driving import is_gone
from tests.worker.test_process import ANSWERS, python, worker_that

HELLO = [{"role": "user", "content": "hello"}]


def turn(number: int) -> Generate:
    return Generate(number, HELLO, GenerationOptions())


async def running(on_event: Callable[[Event], None] = lambda _: None) -> tuple[EngineClient, Engines]:
    """A client of scripted engines, the first of them started."""
    engines = Engines()
    client = EngineClient(engines, on_event)
    await client.start()
    return client, engines


async def all_of(reply: Reply) -> list[Event]:
    return [event async for event in reply]


# -- events -----------------------------------------------------------------------------------------------------


@asynchronous
async def test_commands_under_way_at_once_get_their_own_events() -> None:
    client, engines = await running()
    first, second = client.request(turn), client.request(turn)
    assert (first.id, second.id) == (1, 2)
    for number, text in ((2, "b"), (1, "a"), (1, "A"), (2, "B")):
        engines.newest.say(said(text), to=number)
    engines.newest.say(finished("bB"), to=2)
    engines.newest.say(finished("aA"), to=1)
    for reply, text in ((first, "aA"), (second, "bB")):
        events = await all_of(reply)
        assert {event.id for event in events} == {reply.id}
        assert "".join(event.segments[0][1] for event in events if isinstance(event, TurnDelta)) == text
        assert events[-1] == await reply.last() == reply.ended.result()


@asynchronous
async def test_a_reply_ends_with_its_last_event_and_hears_nothing_later() -> None:
    client, engines = await running()
    reply = client.request(turn)
    engines.newest.say(Failed(0, "refused", "no"), said("late"))
    assert await all_of(reply) == [Failed(1, "refused", "no")]
    await engines.newest.heard()
    assert await all_of(reply) == []


@asynchronous
async def test_a_reply_that_is_read_late_is_complete_and_holds_up_no_other() -> None:
    client, engines = await running()
    slow = client.request(turn)
    engines.newest.say(*[said("x")] * 1000, finished("x"))
    assert isinstance(await client.request(Load).last(), Loaded)
    assert len(await all_of(slow)) == 1001


@asynchronous
async def test_every_event_is_observed_those_of_no_command_too() -> None:
    observed: list[Event] = []
    client, engines = await running(observed.append)
    number = client.send(Load)
    engines.newest.say(Warned(0, "the disk is full"), to=0)
    engines.newest.say(PromptProgress(0, 1, 2), to=77)
    await engines.newest.heard()
    assert [event.id for event in observed] == [number, 0, 77]
    engines.newest.die(3, "why")
    await client.wait()
    assert observed[-1] == Died(0, 3, "why")


@asynchronous
async def test_a_stop_is_for_one_command() -> None:
    client, engines = await running()
    first, second = client.request(turn), client.request(turn)
    second.stop()
    last = await second.last()
    assert isinstance(last, Finished)
    assert last.reason == "interrupted"
    assert engines.newest.stops == [2]
    assert not first.ended.done()
    client.stop(first.id)
    assert engines.newest.stops == [2, 1]


@asynchronous
async def test_who_is_cancelled_while_waiting_for_the_last_event_spoils_nothing() -> None:
    client, engines = await running()
    reply = client.request(turn)
    waiting = asyncio.create_task(reply.last())
    await asyncio.sleep(0)
    waiting.cancel()
    engines.newest.say(finished("all the same"))
    assert isinstance(await reply.last(), Finished)


# -- ends -------------------------------------------------------------------------------------------------------


@asynchronous
async def test_a_death_ends_all_commands_and_another_process_is_started_on_demand() -> None:
    client, engines = await running()
    replies = [client.request(turn) for _ in range(3)]
    engines.newest.die(-9, "its last\nwords")
    assert [await all_of(reply) for reply in replies] == [[Died(0, -9, "its last\nwords")]] * 3
    assert not client.running
    assert await all_of(client.request(turn)) == [Died(0, 0)], "nothing to send it to"
    await client.start()
    await client.start()
    assert len(engines.all) == 2
    engines.newest.on(Generate, [finished("fine")])
    reply = client.request(turn)
    assert reply.id > max(reply.id for reply in replies), "no late event is taken for one of the new process"
    assert isinstance(await reply.last(), Finished)


@pytest.mark.parametrize("fault", [ProtocolError("not a message"), ValueError("a line without an end")], ids=repr)
@asynchronous
async def test_a_process_that_speaks_nonsense_is_killed(fault: Exception) -> None:
    observed: list[Event] = []
    client, engines = await running(observed.append)
    reply = client.request(turn)
    engines.newest.break_with(fault)
    died = await reply.last()
    assert isinstance(died, Died)
    assert str(fault) in died.garbled
    assert ("please report" in died.garbled) == isinstance(fault, ValueError)
    assert observed == [died]
    assert engines.newest.killed
    assert not client.running


@asynchronous
async def test_a_fault_of_the_observer_is_reported_to_it_and_leaves_no_process() -> None:
    observed: list[Event] = []

    def observe(event: Event) -> None:
        observed.append(event)
        if isinstance(event, Loaded):
            raise KeyError("a fault")

    client, engines = await running(observe)
    client.send(Load)
    await client.wait()
    assert isinstance(observed[-1], Died)
    assert "KeyError('a fault'); this should not be, please report it" in observed[-1].garbled
    assert engines.newest.killed


@pytest.mark.parametrize("how", ["kill", "close"])
@asynchronous
async def test_an_end_that_was_asked_for_is_no_event_but_ends_the_replies(how: str) -> None:
    observed: list[Event] = []
    client, engines = await running(observed.append)
    reply = client.request(turn)
    engine = engines.newest
    await getattr(client, how)()
    assert await all_of(reply) == [Died(0, 0)]
    assert (engine.killed, engine.closed, client.running) == (how == "kill", True, False)
    assert observed == []
    await getattr(client, how)()


@asynchronous
async def test_what_an_abandoned_process_still_says_is_not_observed() -> None:
    class Slow(ScriptedEngine):
        async def close(self, grace_s: float = 0.0) -> None:
            self.say(said("late"))
            await self.heard()
            await super().close(grace_s)

    observed: list[Event] = []
    engine = Slow()

    async def start() -> ScriptedEngine:
        return engine

    client = EngineClient(start, observed.append)
    await client.start()
    client.send(turn)
    await client.close()
    assert observed == []


@asynchronous
async def test_another_process_is_started_only_when_the_one_before_is_gone() -> None:
    """Two models might not fit into the memory."""
    client, engines = await running()
    first = engines.newest
    first.kill = lambda: None  # type: ignore[method-assign]
    gone = asyncio.Event()

    async def close(grace_s: float = 0.0) -> None:
        await gone.wait()
        first.die(0)

    first.close = close  # type: ignore[method-assign]
    killing, starting = asyncio.create_task(client.kill()), asyncio.create_task(client.start())
    await asyncio.sleep(0.02)
    assert len(engines.all) == 1
    gone.set()
    await asyncio.gather(killing, starting)
    assert (len(engines.all), client.running) == (2, True)


@asynchronous
async def test_a_process_that_cannot_be_started_is_tried_again() -> None:
    engines = Engines()
    engines.refusal = OSError("no more processes")
    client = EngineClient(engines)
    for _ in range(2):
        with pytest.raises(EngineStartError, match="the engine cannot be started: no more processes"):
            await client.start()
    assert not client.running
    await client.wait()
    engines.refusal = None
    await client.start()
    assert client.running


# -- real processes ---------------------------------------------------------------------------------------------

pytestmark = pytest.mark.usefixtures("home")


def client_of(*program: str, on_event: Callable[[Event], None] = lambda _: None) -> tuple[EngineClient, list[int]]:
    """A client of a program, and the ids of the processes that it starts."""
    pids: list[int] = []

    async def start() -> Any:
        pids.append((process := await WorkerProcess.start(program)).pid)
        return process

    return EngineClient(start, on_event), pids


@asynchronous
async def test_real_processes_answer_die_and_are_replaced() -> None:
    observed: list[Event] = []
    client, pids = client_of(*worker_that(ANSWERS), on_event=observed.append)
    await client.start()
    replies = [client.request(ListModels), client.request(ListModels)]
    assert [await reply.last() for reply in replies] == [Models(1, [], 0), Models(2, [], 0)]
    assert client._process
    client._process.kill()
    await client.wait()
    assert observed[-1] == Died(0, -9)
    await client.start()
    assert await client.request(ListModels).last() == Models(3, [], 0)
    await client.close()
    assert len(pids) == 2
    assert all(map(is_gone, pids))


@asynchronous
async def test_a_real_process_at_work_is_stopped_for_good() -> None:
    client, pids = client_of(*worker_that("time.sleep(60)"))
    await client.start()
    reply = client.request(ListModels)
    await client.kill()
    assert await all_of(reply) == [Died(0, 0)]
    assert is_gone(pids[0])


@asynchronous
async def test_the_last_words_of_a_real_process_are_told() -> None:
    for program, died in (
        ("import sys; sys.exit('why')", Died(0, 1, "why")),
        ("import sys; print('welcome'); sys.stdout.flush(); sys.stdin.read()", None),
    ):
        observed: list[Event] = []
        client, pids = client_of(*python(program), on_event=observed.append)
        await client.start()
        await client.wait()
        (found,) = observed
        assert isinstance(found, Died)
        assert found == died if died else "b'welcome\\n'" in found.garbled
        await until(lambda pids=pids: is_gone(pids[0]), "its end")


@asynchronous
async def test_a_real_stop_reaches_the_command_that_waits() -> None:
    """`Inbox` reads it while the worker is busy with another command."""
    busy = "command.id == 1 and [time.sleep(0.01) for _ in range(500) if not self._inbox.stops(serve.ListModels(2))]"
    client, _ = client_of(*worker_that(busy, ANSWERS))
    await client.start()
    first, second = client.request(ListModels), client.request(ListModels)
    second.stop()
    assert type(await second.last()).__name__ == "Stopped"
    assert await first.last() == Models(1, [], 0)
    client._process.send(Stop(99))  # type: ignore[union-attr]
    assert await client.request(ListModels).last() == Models(3, [], 0)
    await client.close()
