"""Who is answered when: a bounded queue, fair between clients; whoever leaves makes room."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from mlxmtp.server import asgi, host
from mlxmtp.server.errors import ApiError
from mlxmtp.server.queue import FairQueue
from mlxmtp.worker.messages import Generate
from tests.scripted_engine import asynchronous, finished, said, until
from tests.server.protocols import PROTOCOLS, Protocol, protocol_id
from tests.server.scripted import ALL, CHAT, HELLO, MESSAGES, Served, error, sent, serving, turn

each = pytest.mark.parametrize("path", ALL)
both = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])


@asynccontextmanager
async def asking(served: Served, stream: bool, path: str = CHAT, **body: Any) -> AsyncIterator[asyncio.Task[str]]:
    """A request on its way, its text as a task; a client that leaves cancels it."""

    async def ask() -> str:
        request = served.http.stream("POST", path, json=HELLO[path] | {"stream": stream} | body)
        async with request as response:
            return "".join([piece async for piece in response.aiter_text()])

    task = asyncio.create_task(ask())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def turns(served: Served) -> int:
    """How many turns the engine was given."""
    return len(served.engine.sent(Generate))


# -- the queue itself ---------------------------------------------------------------------------------------------


@asynchronous
async def test_clients_take_turns_whoever_sends_more() -> None:
    queue, order = FairQueue(99), []

    async def one(client: str, i: int) -> None:
        await queue.enter(client)
        order.append(f"{client}{i}")
        await asyncio.sleep(0)
        queue.leave()

    await queue.enter("first")
    wishes = [("a", i) for i in range(4)] + [("b", i) for i in range(2)] + [("c", 0)]
    waiting = [asyncio.create_task(one(*wish)) for wish in wishes]
    await asyncio.sleep(0)
    assert (queue.running, queue.waiting) == (1, 7)
    queue.leave()
    await asyncio.gather(*waiting)
    assert order == ["a0", "b0", "c0", "a1", "b1", "a2", "a3"]
    assert (queue.running, queue.waiting) == (0, 0)


@asynchronous
async def test_a_place_is_never_lost_whoever_is_cancelled_when() -> None:
    """Cancelled while it waits, in the very moment of its turn, and both at once."""
    queue = FairQueue(9)
    for called_first in (True, False):
        await queue.enter("a")
        leaving, staying = (asyncio.create_task(queue.enter(client)) for client in "bc")
        await asyncio.sleep(0)
        for step in (queue.leave, leaving.cancel) if called_first else (leaving.cancel, queue.leave):
            step()
        await asyncio.gather(leaving, return_exceptions=True)
        await asyncio.wait_for(staying, 1)
        assert (queue.running, queue.waiting) == (1, 0)
        queue.leave()
        assert (queue.running, queue.waiting) == (0, 0)


@asynchronous
async def test_nobody_waits_in_a_queue_of_none() -> None:
    queue = FairQueue(0)
    await queue.enter("a")
    with pytest.raises(ApiError) as refusal:
        await queue.enter("a")
    assert (refusal.value.status, refusal.value.code) == (503, "queue_full")
    queue.leave()
    await queue.enter("a")


# -- requests -----------------------------------------------------------------------------------------------------


@asynchronous
async def test_turns_go_round_the_clients_of_requests() -> None:
    """By what names their session, where they say it; by their program and host, where not."""
    async with serving() as served, served.online() as online:
        names = [{"prompt_cache_key": "main"}] * 3 + [{"user": "title"}, {"metadata": {"user_id": "x"}}]
        tasks = []
        for i, name in enumerate(names, start=1):
            body = HELLO[CHAT] | {"max_tokens": i} | name
            tasks.append(asyncio.create_task(online.post(CHAT, body)))
            await until(lambda i=i: served.host.queue.running + served.host.queue.waiting == i, "its place")
        order = []
        for i in range(1, 6):
            await until(lambda i=i: turns(served) == i, "the next turn")
            order.append(served.command.settings.max_tokens)
            served.engine.say(said("ok"), finished("ok"))
        assert order == [1, 2, 4, 5, 3]
        assert {response.status_code for response in await asyncio.gather(*tasks)} == {200}


@each
@both
@asynchronous
async def test_a_full_queue_says_when_to_come_again(path: str, stream: bool) -> None:
    async with serving(queue=1) as served, served.online() as online:
        async with asking(online, True), asking(online, False):
            await until(lambda: served.host.queue.waiting == 1, "a full queue")
            response = await online.post(path, HELLO[path] | {"stream": stream})
            assert response.status_code == 503
            assert int(response.headers["retry-after"]) > 0
            assert "1 requests wait" in error(path, response.json())["message"]
            if path == MESSAGES:
                assert error(path, response.json())["type"] == "overloaded_error"
        await online.works()


@both
@asynchronous
async def test_who_leaves_while_waiting_is_forgotten(stream: bool) -> None:
    async with serving() as served, served.online() as online, asking(online, True) as first:
        await until(lambda: turns(served) == 1, "the first turn")
        async with asking(online, stream), asking(online, stream, max_tokens=77) as last:
            await until(lambda: served.host.queue.waiting == 2, "the waiting")
            last.cancel()
            await until(lambda: served.host.queue.waiting == 1, "one fewer")
        await until(lambda: served.host.queue.waiting == 0, "none")
        served.engine.say(said("ok"), finished("ok"))
        assert "ok" in await first
        assert turns(served) == 1
        await online.works()


@each
@both
@asynchronous
async def test_who_leaves_an_answer_stops_it_and_gives_its_place_to_the_next(path: str, stream: bool) -> None:
    """With the first round after that: the engine says nothing more than its end."""
    async with serving() as served, served.online() as online:
        async with asking(online, stream, path), asking(online, False) as second:
            await until(lambda: turns(served) == 1, "the first turn")
            served.engine.say(said("one "), said("two "))
            await until(lambda: served.host.queue.waiting == 1, "the second")
            await served.engine.heard()
            assert not served.engine.stops
        second.cancel()
        await until(lambda: served.engine.stops == [2], "the stop")
        await online.works()


@asynchronous
async def test_the_next_begins_when_the_one_before_has_left() -> None:
    async with serving() as served, served.online() as online:
        async with asking(online, True) as first, asking(online, False) as second:
            await until(lambda: served.host.queue.waiting == 1, "the second")
            served.engine.say(said("one "))
            first.cancel()
            await until(lambda: turns(served) == 2, "its turn")
            assert len(served.engine.stops) == 1
            served.engine.say(said("mine"), finished("mine"))
            assert "mine" in await second
        assert any(" 499 " in line for line in served.log)
        assert not served.engine.killed


@asynchronous
async def test_what_an_abandoned_turn_still_says_is_not_heard_by_the_next() -> None:
    async with serving() as served, served.online() as online:
        served.engine.deaf = True
        async with asking(online, True) as first, asking(online, False) as second:
            await until(lambda: served.host.queue.waiting == 1, "the second")
            first.cancel()
            await until(lambda: bool(served.engine.stops), "the stop")
            served.engine.say(said("not for you"))
            await served.engine.heard()
            assert turns(served) == 1
            served.engine.say(finished("", "interrupted"))
            await until(lambda: turns(served) == 2, "the next turn")
            served.engine.say(said("late"), to=served.command.id - 1)
            served.engine.say(said("mine"), finished("mine"))
            assert "mine" in (text := await second)
            assert "not for you" not in text
            assert "late" not in text


@asynchronous
async def test_an_engine_that_ignores_a_stop_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """And whoever waits behind it hears nothing of that."""
    monkeypatch.setattr(host, "STOP_S", 0.05)
    async with serving() as served, served.online() as online:
        served.engine.deaf = True
        async with asking(online, True) as first, asking(online, False) as second:
            await until(lambda: served.host.queue.waiting == 1, "the second")
            first.cancel()
            await until(lambda: len(served.engines.all) == 2, "another engine")
            assert served.engines.all[0].killed
            await until(lambda: turns(served) == 1, "the second's turn")
            served.engine.say(said("mine"), finished("mine"))
            assert "mine" in await second
        await online.works()
        assert served.host.restarts == 1


@asynchronous
async def test_a_turn_that_ends_in_time_is_not_punished(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "STOP_S", 0.05)
    async with serving() as served, served.online() as online:
        async with asking(online, True):
            await until(lambda: turns(served) == 1, "its turn")
        await online.works()
        await asyncio.sleep(0.1)
        assert not served.engine.killed


# -- slow ones ----------------------------------------------------------------------------------------------------


@asynchronous
async def test_a_reader_that_does_not_read_holds_up_nobody() -> None:
    """Its answer is kept for it; the engine goes on with the next."""
    text = "0123456789abcdef" * 1_000_000  # more than the system's buffers take
    async with serving(turn(text, piece=400_000)) as served, served.online() as online:
        address = online.http.base_url
        reader, writer = await asyncio.open_connection(address.host, address.port, limit=1024)
        body = b'{"prompt": "hi", "stream": true}'
        writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        await until(lambda: turns(served) == 1, "its turn")
        await online.works()
        writer.write(b"GET /health HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        answer = b""
        while piece := await reader.read(1 << 16):
            answer += piece
        assert answer.count(b"f0123456789abcde") == 1_000_000 - 40  # 40 stand in two events
        assert b"[DONE]" in answer
        writer.close()


@each
@asynchronous
async def test_a_long_prefill_is_bridged_by_comments(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asgi, "KEEP_ALIVE_S", 0.02)
    async with serving() as served, served.online() as online:
        request = online.http.stream("POST", path, json=HELLO[path] | {"stream": True})
        async with asyncio.timeout(10), request as response:
            text, comments = "", 0
            async for piece in response.aiter_text():
                text += piece
                if text.count(": keep-alive\n\n") == comments:
                    continue
                comments = text.count(": keep-alive\n\n")
                if comments == 2:
                    served.engine.say(said("Hello"))
                if comments == 4:
                    served.engine.say(finished("Hello"))
        assert comments >= 4
        assert text.index("Hello") < text.rindex(": keep-alive")
        assert sent(text)


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=protocol_id)
@asynchronous
async def test_comments_while_one_waits_in_the_queue(protocol: Protocol, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asgi, "KEEP_ALIVE_S", 0.02)
    async with serving() as served, served.online() as online, asking(online, False) as first:
        await until(lambda: turns(served) == 1, "the first turn")
        request = online.http.stream("POST", protocol.path, json=protocol.ask("hi") | {"stream": True})
        async with asyncio.timeout(10), request as response:
            text, comments = "", 0
            async for piece in response.aiter_text():
                text += piece
                comments = text.count(": keep-alive")
                if comments == 2 and not first.done():
                    served.engine.on(Generate, turn("mine"))
                    served.engine.say(said("first"), finished("first"))
                    await first
        assert comments >= 2
        assert protocol.streamed(sent(text)).text == "mine"
