"""An engine that refuses, runs out of memory, dies or sends garbage: an error in each protocol, then normal service."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from mlxmtp.server import app
from mlxmtp.worker.lines import ProtocolError as NoMessage
from mlxmtp.worker.messages import Failed, Generate, Load, Loaded
from tests.scripted_engine import asynchronous, finished, loaded, said, until
from tests.server.scripted import (
    ALL,
    CHAT,
    COMPLETIONS,
    MESSAGES,
    MINIMAL,
    RESPONSES,
    LocalServer,
    ServerSentEvent,
    adapter,
    parse_error,
    parse_events,
    serving,
    turn,
)

each = pytest.mark.parametrize("path", ALL)
both = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
FAILURES = {
    "refused": (Failed(0, "refused", "depth is 99; expected at most 16"), 400, "depth is 99"),
    "memory": (Failed(0, "memory", "[malloc] Unable to allocate"), 500, "a shorter prompt needs less"),
    "failed": (Failed(0, "failed", "disk full"), 500, "disk full"),
}


def stream_error(path: str, events: list[ServerSentEvent]) -> dict[str, Any]:
    """The error at the end of a stream."""
    if path == RESPONSES:
        last = events[-1]
        assert (last.event, last.data["type"]) == ("response.failed", "response.failed")
        assert last.data["response"]["status"] == "failed"
        assert [one.data["sequence_number"] for one in events] == list(range(len(events)))
        about: dict[str, Any] = last.data["response"]["error"]
        assert about.keys() == {"code", "message"}
        return about
    if path == MESSAGES:
        assert events[-1].event == "error"
        return parse_error(path, events[-1].data)
    assert events[-1].data == "[DONE]"
    return parse_error(path, events[-2].data)


async def ask(served: LocalServer, path: str, stream: bool) -> tuple[int, dict[str, Any]]:
    """Status and error of a request that fails."""
    response = await served.post(path, MINIMAL[path] | {"stream": stream})
    if stream and response.status_code == 200:
        return 200, stream_error(path, parse_events(response.text))
    return response.status_code, parse_error(path, response.json())


@each
@both
@pytest.mark.parametrize("kind", FAILURES)
@asynchronous
async def test_an_early_failure_has_a_status(path: str, stream: bool, kind: str) -> None:
    event, status, message = FAILURES[kind]
    async with serving([event]) as served:
        response = await served.post(path, MINIMAL[path] | {"stream": stream})
        assert response.status_code == status
        assert message in parse_error(path, response.json())["message"]
        assert response.headers.get("x-should-retry") == (None if kind == "failed" else "false")
        await served.assert_works()
        assert len(served.engines.all) == 1


@each
@both
@pytest.mark.parametrize("kind", FAILURES)
@asynchronous
async def test_a_later_failure_is_in_the_stream(path: str, stream: bool, kind: str) -> None:
    event, status, message = FAILURES[kind]
    async with serving([said("So "), said("far"), event]) as served:
        found, about = await ask(served, path, stream)
        assert found == (200 if stream else status)
        assert message in about["message"]
        assert any(f" {status} " in line and message in line for line in served.log)
        await served.assert_works()


@each
@both
@asynchronous
async def test_a_slow_refusal_is_in_the_stream(path: str, stream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "FIRST_EVENT_S", 0.0)
    async with serving([FAILURES["refused"][0]]) as served:
        status, about = await ask(served, path, stream)
        assert (status, "depth is 99" in about["message"]) == (200 if stream else 400, True)
        await served.assert_works()


@each
@both
@asynchronous
async def test_an_engine_that_dies_is_replaced(path: str, stream: bool) -> None:
    async with serving() as served, served.over_socket() as online:
        asking = asyncio.create_task(ask(online, path, stream))
        await until(lambda: served.engine.sent(Generate), "its turn")
        served.engine.say(said("So "), said("far"))
        await served.engine.heard()
        served.engine.die(-9)
        status, about = await asking
        assert status == (200 if stream else 500)
        assert "the engine died (killed, perhaps because memory ran out)" in about["message"]
        await until(lambda: len(served.engines.all) == 2, "another engine")
        await online.assert_works()
        assert served.host.restarts == 1


@asynchronous
async def test_ranks_that_die_are_unavailable_for_a_while() -> None:
    async with serving() as served:
        served.host.loaded = loaded(ranks="2 ranks (ring)")
        asking = asyncio.create_task(served.post(CHAT))
        await until(lambda: served.engine.sent(Generate), "its turn")
        served.engine.die(1, "mlxmtp: rank 1 ended (signal 9)")
        response = await asking
        assert (response.status_code, response.headers["retry-after"]) == (503, "10")
        assert "2 ranks (ring): the engine died (exit code 1: mlxmtp: rank 1 ended (signal 9))" in response.text
        await until(lambda: served.host.ready and served.host.restarts == 1, "the ranks again")


@asynchronous
async def test_an_engine_that_sends_garbage_is_replaced() -> None:
    async with serving() as served, served.over_socket() as online:
        for fault in (NoMessage("not a message of this version"), ValueError("a line without an end")):
            engine = served.engine
            engine.on(Generate, ())
            asked = len(engine.sent(Generate))
            asking = asyncio.create_task(ask(online, CHAT, False))
            await until(lambda engine=engine, n=asked: len(engine.sent(Generate)) > n, "its turn")
            engine.break_with(fault)
            status, about = await asking
            assert (status, "the engine died" in about["message"]) == (500, True)
            assert engine.killed
            await until(lambda: served.host.ready, "another engine")
            await online.assert_works()


@asynchronous
async def test_requests_that_wait_while_the_engine_dies_are_answered_by_the_next() -> None:
    async with serving() as served, served.over_socket() as online:
        first = asyncio.create_task(online.post(CHAT))
        await until(lambda: served.engine.sent(Generate), "its turn")
        waiting = [asyncio.create_task(online.post(path)) for path in ALL]
        await until(lambda: served.host.queue.waiting == len(ALL), "the others")
        served.engines.script[Generate] = turn("fine")
        served.engine.die()
        assert (await first).status_code == 500
        assert [response.status_code for response in await asyncio.gather(*waiting)] == [200] * len(ALL)
        assert served.host.restarts == 1


@asynchronous
async def test_an_engine_that_dies_ends_all_turns_that_it_ran() -> None:
    """Each is told so; the next engine answers who waits, as many at once as it says."""
    async with serving(parallel=3) as served, served.over_socket() as online:
        running = [asyncio.create_task(ask(online, path, path == CHAT)) for path in (CHAT, RESPONSES, MESSAGES)]
        await until(lambda: len(served.engine.sent(Generate)) == 3, "three turns")
        waiting = [asyncio.create_task(online.post(path)) for path in ALL]
        await until(lambda: served.host.queue.waiting == len(ALL), "the others")
        served.engines.script |= {Load: [loaded(parallel=1)], Generate: turn("fine")}
        served.engine.die()
        for status, about in await asyncio.gather(*running):
            assert (status in (200, 500), "the engine died" in about["message"]) == (True, True)
        assert [response.status_code for response in await asyncio.gather(*waiting)] == [200] * len(ALL)
        assert (served.host.restarts, served.host.queue.places) == (1, 1)


@asynchronous
async def test_an_engine_that_dies_between_turns() -> None:
    async with serving(turn("fine")) as served:
        warned: list[str] = []
        served.host.warn = warned.append
        served.engine.die()
        await until(lambda: len(served.engines.all) == 2, "another engine")
        await served.assert_works()
        assert warned == ["the engine died (killed, perhaps because memory ran out); another is started"]


@each
@asynchronous
async def test_an_engine_that_cannot_be_started_again(path: str) -> None:
    """Each request starts it once more and reports the failure, until it starts."""
    async with serving(turn("fine")) as served:
        served.engines.script[Load] = [Failed(0, "refused", "no such model any more")]
        served.engine.die()
        await until(lambda: len(served.engines.all) == 2 and not served.host.ready, "a futile start")
        for _ in range(2):
            response = await served.post(path)
            assert response.status_code == 503
            assert int(response.headers["retry-after"]) > 0
            assert "no such model any more" in parse_error(path, response.json())["message"]
        served.engines.refusal = OSError("no more processes")
        assert "no more processes" in (await served.post(path)).text
        served.engines.refusal = None
        served.engines.script[Load] = [loaded()]
        await served.assert_works()


@asynchronous
async def test_an_engine_that_dies_while_it_loads_is_not_restarted() -> None:
    async with serving(turn("fine")) as served:
        served.engines.script[Load] = []
        served.engine.die()
        await until(lambda: len(served.engines.all) == 2, "another engine")
        served.engine.die()
        await until(lambda: not served.host.ready, "its end")
        await asyncio.sleep(0.05)
        assert len(served.engines.all) == 2
        served.engines.script[Load] = [loaded()]
        await served.assert_works()


@asynchronous
async def test_a_request_waits_for_the_load_of_the_next_engine() -> None:
    async with serving(turn("fine")) as served:
        served.engines.script[Load] = []
        served.engine.die()
        await until(lambda: served.engine.sent(Load) and len(served.engines.all) == 2, "a load")
        asking = asyncio.create_task(served.post(CHAT))
        await until(lambda: served.host.queue.running == 1, "a request")
        assert not asking.done()
        served.engine.say(Loaded(**vars(loaded())))
        assert (await asking).status_code == 200


@each
@asynchronous
async def test_an_internal_error_is_reported_and_the_server_goes_on(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(turn("fine")) as served:
        with monkeypatch.context() as patch:
            patch.setattr("mlxmtp.server.app.replace", lambda *_, **__: 1 / 0)
            response = await served.post(path)
        assert response.status_code == 500
        assert "ZeroDivisionError" in parse_error(path, response.json())["message"]
        with monkeypatch.context() as patch:
            patch.setattr("mlxmtp.server.turn.TurnParser.feed", lambda *_: 1 / 0)
            response = await served.post(path)
        assert response.status_code == 500
        assert "ZeroDivisionError" in parse_error(path, response.json())["message"]
        await served.assert_works()


@asynchronous
async def test_an_internal_error_in_a_stream_ends_it_with_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving([said("So"), finished("So")]) as served:
        for path in ALL:
            kind = type(adapter(path))
            make_writer = kind.stream_writer

            def broken_writer(self: Any, context: Any, make_writer: Any = make_writer) -> Any:
                writer = make_writer(self, context)
                writer.write = lambda _: 1 / 0
                return writer

            with monkeypatch.context() as patch:
                patch.setattr(kind, "stream_writer", broken_writer)
                about = stream_error(path, await served.stream(path))
            assert "ZeroDivisionError" in about["message"]
            served.engine.on(Generate, [said("So"), finished("So")])
        await served.assert_works()


@asynchronous
async def test_an_error_has_none_of_the_generated_text() -> None:
    """The error of an answer that is not streamed has none of the generated text."""
    async with serving([said("So far"), FAILURES["failed"][0]]) as served:
        response = await served.post(COMPLETIONS)
        assert "So far" not in response.text


@asynchronous
async def test_shutdown_answers_all_requests() -> None:
    async with serving() as served, served.over_socket() as online:
        asking = [asyncio.create_task(ask(online, path, stream)) for path in ALL for stream in (False, True)]
        await until(lambda: served.host.queue.waiting == len(asking) - 1, "all of them")
        served.engine.say(said("So "))
        await served.host.close()
        for status, about in await asyncio.gather(*asking):
            assert status in (200, 503)
            assert about["message"] == "the server is shutting down"
        assert served.engine.closed
        assert len(served.engines.all) == 1


@asynchronous
async def test_shutdown_while_another_engine_loads() -> None:
    async with serving(turn("fine")) as served:
        served.engines.script[Load] = []
        served.engine.die()
        asking = asyncio.create_task(served.post(CHAT))
        await until(lambda: served.host.queue.running == 1 and len(served.engines.all) == 2, "a load")
        await served.host.close()
        assert (await asking).status_code == 503
