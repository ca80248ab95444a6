"""The bounded queue: fair between clients, and clients that disconnect free their place. Keep-alives."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import product
from typing import Any

import pytest

from mlxmtp.server import asgi, host
from mlxmtp.server.errors import ApiError
from mlxmtp.server.queue import FairQueue
from mlxmtp.worker.messages import Generate
from tests.scripted_engine import asynchronous, finished, said, until
from tests.server.protocols import PROTOCOLS, Protocol, protocol_id
from tests.server.scripted import ALL, CHAT, MESSAGES, MINIMAL, LocalServer, parse_error, parse_events, serving, turn

each = pytest.mark.parametrize("path", ALL)
both = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])


@asynccontextmanager
async def request_in_progress(
    served: LocalServer, stream: bool, path: str = CHAT, **body: Any
) -> AsyncIterator[asyncio.Task[str]]:
    """A request in progress. The task returns the text of the answer; cancelling it disconnects the client."""

    async def ask() -> str:
        request = served.http.stream("POST", path, json=MINIMAL[path] | {"stream": stream} | body)
        async with request as response:
            return "".join([piece async for piece in response.aiter_text()])

    task = asyncio.create_task(ask())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def turns(served: LocalServer) -> int:
    """The number of turns that the engine was given."""
    return len(served.engine.sent(Generate))


# -- the queue itself ---------------------------------------------------------------------------------------------


@asynchronous
async def test_the_queue_is_fair_between_clients() -> None:
    queue, order = FairQueue(99), []

    async def one(client: str, i: int) -> None:
        await queue.enter(client)
        order.append(f"{client}{i}")
        await asyncio.sleep(0)
        queue.leave(client)

    await queue.enter("first")
    wishes = [("a", i) for i in range(4)] + [("b", i) for i in range(2)] + [("c", 0)]
    waiting = [asyncio.create_task(one(*wish)) for wish in wishes]
    await asyncio.sleep(0)
    assert (queue.running, queue.waiting) == (1, 7)
    queue.leave("first")
    await asyncio.gather(*waiting)
    assert order == ["a0", "b0", "c0", "a1", "b1", "a2", "a3"]
    assert (queue.running, queue.waiting) == (0, 0)


@asynchronous
async def test_a_cancelled_waiter_does_not_block_the_queue() -> None:
    """A waiter is cancelled just before its turn begins, and just after."""
    queue = FairQueue(9)
    for called_first in (True, False):
        await queue.enter("a")
        leaving, staying = (asyncio.create_task(queue.enter(client)) for client in "bc")
        await asyncio.sleep(0)
        steps = [lambda: queue.leave("a"), leaving.cancel]
        for step in steps if called_first else reversed(steps):
            step()
        await asyncio.gather(leaving, return_exceptions=True)
        await asyncio.wait_for(staying, 20)
        assert (queue.running, queue.waiting) == (1, 0)
        queue.leave("c")
        assert (queue.running, queue.waiting) == (0, 0)


@asynchronous
async def test_a_queue_of_length_zero() -> None:
    queue = FairQueue(0)
    await queue.enter("a")
    with pytest.raises(ApiError) as refusal:
        await queue.enter("a")
    assert (refusal.value.status, refusal.value.code) == (503, "queue_full")
    queue.leave("a")
    await queue.enter("a")


@asynchronous
async def test_several_places_are_shared_fairly_between_clients() -> None:
    """A place goes to who has the fewest, and among equals to who has waited longest."""
    queue, order = FairQueue(99, places=3), []

    async def enter(client: str) -> None:
        await queue.enter(client)
        order.append(client)

    async def settle() -> str:
        for _ in range(3):
            await asyncio.sleep(0)
        found = "".join(order)
        order.clear()
        return found

    waiting = [asyncio.create_task(enter(client)) for client in "aaaaaabbcd"]
    assert await settle() == "aaa", "free places wait for nobody"
    for leaving, expected in (("a", "b"), ("a", "c"), ("a", "a"), ("b", "d"), ("a", "b"), ("c", "a"), ("d", "a")):
        queue.leave(leaving)
        assert await settle() == expected, (leaving, queue.running, queue.waiting)
    assert (queue.running, queue.waiting) == (3, 0)
    waiting += [asyncio.create_task(enter("e")) for _ in range(4)]
    queue.places = 5
    assert (await settle(), queue.running, queue.waiting) == ("ee", 5, 2)
    queue.places = 1
    for client in "aab":
        queue.leave(client)
    assert (await settle(), queue.running, queue.waiting) == ("", 2, 2), "more run than there are places"
    await asyncio.gather(*(task for task in waiting if task.done()))
    queue.leave("e")
    queue.leave("e")
    assert (await settle(), queue.running, queue.waiting) == ("e", 1, 1)
    queue.leave("e")
    await asyncio.gather(*waiting)


# -- requests -----------------------------------------------------------------------------------------------------


@asynchronous
async def test_requests_of_several_clients_take_turns() -> None:
    """A client is its session where the request names one, else its program and address."""
    async with serving() as served, served.over_socket() as online:
        names = [{"prompt_cache_key": "main"}] * 3 + [{"user": "title"}, {"metadata": {"user_id": "x"}}]
        tasks = []
        for i, name in enumerate(names, start=1):
            body = MINIMAL[CHAT] | {"max_tokens": i} | name
            tasks.append(asyncio.create_task(online.post(CHAT, body)))
            await until(lambda i=i: served.host.queue.running + served.host.queue.waiting == i, "its place")
        order = []
        for i in range(1, 6):
            await until(lambda i=i: turns(served) == i, "the next turn")
            order.append(served.command.settings.max_tokens)
            served.engine.say(said("ok"), finished("ok"))
        assert order == [1, 2, 4, 5, 3]
        assert {response.status_code for response in await asyncio.gather(*tasks)} == {200}


@asynchronous
async def test_a_full_queue_has_a_retry_after_header() -> None:
    async with serving(queue=1) as served, served.over_socket() as online:
        async with request_in_progress(online, True), request_in_progress(online, False):
            await until(lambda: served.host.queue.waiting == 1, "a full queue")
            for path, stream in product(ALL, (False, True)):
                response = await online.post(path, MINIMAL[path] | {"stream": stream})
                assert response.status_code == 503, (path, stream)
                assert int(response.headers["retry-after"]) > 0, (path, stream)
                error = parse_error(path, response.json())
                assert "1 requests wait" in error["message"], (path, stream)
                if path == MESSAGES:
                    assert error["type"] == "overloaded_error", stream
        await online.assert_works()


@both
@asynchronous
async def test_a_client_that_disconnects_while_waiting_leaves_the_queue(stream: bool) -> None:
    async with serving() as served, served.over_socket() as online, request_in_progress(online, True) as first:
        await until(lambda: turns(served) == 1, "the first turn")
        async with request_in_progress(online, stream), request_in_progress(online, stream, max_tokens=77) as last:
            await until(lambda: served.host.queue.waiting == 2, "the waiting")
            last.cancel()
            await until(lambda: served.host.queue.waiting == 1, "one fewer")
        await until(lambda: served.host.queue.waiting == 0, "none")
        served.engine.say(said("ok"), finished("ok"))
        assert "ok" in await first
        assert turns(served) == 1
        await online.assert_works()


@asynchronous
async def test_a_client_that_disconnects_stops_its_turn() -> None:
    """The engine is stopped at its next round."""
    async with serving() as served, served.over_socket() as online:
        for path, stream in product(ALL, (False, True)):
            what = f"{path}, {stream=}"
            served.engine.on(Generate, ())
            asked, stops = turns(served), len(served.engine.stops)
            async with request_in_progress(online, stream, path), request_in_progress(online, False) as second:
                await until(lambda asked=asked: turns(served) == asked + 1, f"the first turn, {what}")
                first = served.command.id
                served.engine.say(said("one "), said("two "))
                await until(lambda: served.host.queue.waiting == 1, f"the second, {what}")
                await served.engine.heard()
                assert len(served.engine.stops) == stops, what
            second.cancel()
            await until(lambda first=first, n=stops: served.engine.stops[n:] == [first], f"the stop, {what}")
            await online.assert_works()


@asynchronous
async def test_the_next_turn_begins_after_a_disconnect() -> None:
    async with serving() as served, served.over_socket() as online:
        async with request_in_progress(online, True) as first, request_in_progress(online, False) as second:
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
async def test_late_events_of_a_stopped_turn_do_not_reach_the_next() -> None:
    async with serving() as served, served.over_socket() as online:
        served.engine.deaf = True
        async with request_in_progress(online, True) as first, request_in_progress(online, False) as second:
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
    """The next request in the queue is answered normally."""
    monkeypatch.setattr(host, "STOP_S", 0.05)
    async with serving() as served, served.over_socket() as online:
        served.engine.deaf = True
        async with request_in_progress(online, True) as first, request_in_progress(online, False) as second:
            await until(lambda: served.host.queue.waiting == 1, "the second")
            first.cancel()
            await until(lambda: len(served.engines.all) == 2, "another engine")
            assert served.engines.all[0].killed
            await until(lambda: turns(served) == 1, "the second's turn")
            served.engine.say(said("mine"), finished("mine"))
            assert "mine" in await second
        await online.assert_works()
        assert served.host.restarts == 1


@asynchronous
async def test_turns_at_once_have_their_own_events_and_stops() -> None:
    """The first client leaves: its turn alone is stopped, and the third's begins beside the second's."""
    async with serving(parallel=2) as served, served.over_socket() as online:
        async with (
            request_in_progress(online, True, max_tokens=1) as first,
            request_in_progress(online, True, max_tokens=2) as second,
            request_in_progress(online, False, max_tokens=3) as third,
        ):
            await until(lambda: served.host.queue.waiting == 1, "two turns, and one that waits")
            ids = {command.settings.max_tokens: command.id for command in served.engine.sent(Generate)}
            assert len(ids) == 2
            beside, gone = ids.get(2) or ids[3], ids[1]
            for word in ("one ", "two "):
                served.engine.say(said(f"a{word}"), to=gone)
                served.engine.say(said(f"b{word}"), to=beside)
            first.cancel()
            await until(lambda: turns(served) == 3, "the last one's turn")
            assert served.engine.stops == [gone]
            last = served.command.id
            served.engine.say(said("c"), finished("c"), to=last)
            served.engine.say(finished("b"), to=beside)
            texts = await asyncio.gather(second, third)
            assert sorted(("bone" in text, "c" in text and "bone" not in text) for text in texts) == [
                (False, True),
                (True, False),
            ]
            assert not any("aone" in text for text in texts)
        await online.assert_works()


@asynchronous
async def test_an_engine_that_stops_in_time_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "STOP_S", 0.05)
    async with serving() as served, served.over_socket() as online:
        async with request_in_progress(online, True):
            await until(lambda: turns(served) == 1, "its turn")
        await online.assert_works()
        await asyncio.sleep(0.1)
        assert not served.engine.killed


# -- slow ones ----------------------------------------------------------------------------------------------------


@asynchronous
async def test_a_client_that_does_not_read_blocks_nobody() -> None:
    """Its answer is buffered; the engine goes on with the next turn."""
    text = "0123456789abcdef" * 1_000_000  # more than the socket's buffers hold
    async with serving(turn(text, piece=400_000)) as served, served.over_socket() as online:
        address = online.http.base_url
        reader, writer = await asyncio.open_connection(address.host, address.port, limit=1024)
        body = b'{"prompt": "hi", "stream": true}'
        head = (
            b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        )
        writer.write(head % len(body) + body)
        await until(lambda: turns(served) == 1, "its turn")
        await online.assert_works()
        writer.write(b"GET /health HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        answer = b""
        while piece := await reader.read(1 << 16):
            answer += piece
        assert answer.count(b"f0123456789abcde") == 1_000_000 - 40  # 40 are split over two events
        assert b"[DONE]" in answer
        writer.close()


@each
@asynchronous
async def test_keep_alives_during_a_long_prefill(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asgi, "KEEP_ALIVE_S", 0.02)
    async with serving() as served, served.over_socket() as online:
        request = online.http.stream("POST", path, json=MINIMAL[path] | {"stream": True})
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
        assert parse_events(text)


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=protocol_id)
@asynchronous
async def test_keep_alives_while_waiting_in_the_queue(protocol: Protocol, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asgi, "KEEP_ALIVE_S", 0.02)
    async with serving() as served, served.over_socket() as online, request_in_progress(online, False) as first:
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
        assert protocol.streamed(parse_events(text)).text == "mine"
