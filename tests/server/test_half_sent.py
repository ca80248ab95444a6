"""Requests that are sent by half, or too many at a time: they end, and the others are answered."""

from __future__ import annotations

import asyncio
import errno
import gc
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from mlxmtp.server import body, connections
from mlxmtp.server.body import HeldBodies
from mlxmtp.server.connections import Connections
from mlxmtp.server.errors import ApiError
from tests.conftest import REPO
from tests.scripted_engine import asynchronous, until
from tests.server.scripted import CHAT, MESSAGES, LocalServer, serving, turn

HALF = b"GET /health HTTP/1.1\r\nhost: localhost\r\nx: "
PATIENCE_S = 60
"""Longer than anything here takes on a busy machine."""
SOON_S = 12
"""Shorter than `HEAD_S`: a connection that ends within it was closed for another reason."""
WHOLE = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"


async def connect(online: LocalServer, content: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection on which `content` was sent."""
    address = online.http.base_url
    reader, writer = await asyncio.open_connection(address.host, address.port)
    writer.write(content)
    await writer.drain()
    return reader, writer


def head(path: str, length: int) -> bytes:
    """The head of a request with a body."""
    return (
        f"POST {path} HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    ).encode()


async def ended(reader: asyncio.StreamReader) -> bytes:
    """All that the server sends until it closes the connection."""
    try:
        return await asyncio.wait_for(reader.read(), SOON_S)
    except ConnectionError:
        return b""


@asynchronous
async def test_a_head_must_arrive_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_S", 0.3)
    async with serving(turn("fine")) as served, served.over_socket() as online:
        for content in (b"", HALF):
            reader, _ = await connect(online, content)
            assert await ended(reader) == b"", content
        reader, writer = await connect(online, WHOLE)  # the second request of a connection too
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        writer.write(HALF)
        for _ in range(10):
            await asyncio.sleep(0.05)
            writer.write(b"x")  # a byte now and then does not help
        assert b"HTTP" not in await ended(reader)
        message = b'{"messages": [{"role": "user", "content": "hi"}]}'
        reader, writer = await connect(online, head(CHAT, len(message)))
        await asyncio.sleep(0.5)
        writer.write(message)  # the head was in time
        assert (await asyncio.wait_for(reader.readline(), PATIENCE_S)).startswith(b"HTTP/1.1 200")
        writer.close()


@asynchronous
async def test_a_client_that_still_reads_an_answer_is_not_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_S", 0.3)
    text = "many words " * 1_000_000
    async with serving(turn(text, piece=0)) as served, served.over_socket() as online:
        message = b'{"messages": [{"role": "user", "content": "hi"}]}'
        reader, writer = await connect(online, head(CHAT, len(message)) + message)
        size = 0
        while piece := await asyncio.wait_for(reader.read(1 << 20), PATIENCE_S):
            size += len(piece)
            await asyncio.sleep(0.02)
        assert size > len(text)
        writer.close()


@asynchronous
async def test_too_many_connections_close_the_oldest_that_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 4)
    async with serving(turn("fine")) as served, served.over_socket() as online:
        opened = [await connect(online, HALF) for _ in range(20)]
        assert (await online.http.get("/health")).status_code == 200
        for reader, _ in opened[:16]:
            assert await ended(reader) == b""
        assert not opened[-1][0].at_eof()
        await online.assert_works()
        for _ in range(20):
            reader, _ = await connect(online, b"\x16\x03\x01\r\n\r\n")
            assert b" 400 " in await ended(reader)
        assert sum("were refused" in line for line in served.log) == 1


def test_a_line_a_minute_tells_of_connections_that_are_not_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    told: list[Any] = []
    now = [100.0]
    monkeypatch.setattr(connections.time, "monotonic", lambda: now[0])
    group = Connections(lines.append, 4)
    loop: Any = type("Loop", (), {"default_exception_handler": staticmethod(told.append)})
    for _ in range(1000):
        group.on_loop_error(loop, {"exception": OSError(errno.EMFILE, "Too many open files")})
    assert len(lines) == 1
    assert "Too many open files" in lines[0]
    now[0] += 61
    group.refuse("again")
    assert lines[1:] == ["warning: 1000 connections were refused: again"]
    group.on_loop_error(loop, {"exception": OSError(errno.EPIPE, "other")})
    group.on_loop_error(loop, {"message": "no exception"})
    assert len(told) == 2


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
@asynchronous
async def test_bodies_are_bounded_together() -> None:
    """Half-sent ones make room for the others, the largest first, and are gone at once."""
    async with serving(turn("fine"), max_body=100_000) as served, served.over_socket() as online:
        opened = [await connect(online, head(CHAT, 99_000) + b"[" * 90_000) for _ in range(12)]
        await until(
            lambda: sum(" 503 " in line for line in served.log) == 9, "the refusals", seen=lambda: str(served.log)
        )
        assert sum(served.service.bodies._sizes.values()) <= 300_000
        answers = await asyncio.gather(*(asyncio.wait_for(reader.readline(), PATIENCE_S) for reader, _ in opened[:9]))
        assert all(b" 503 " in answer for answer in answers)
        alive = [found for found in gc.get_objects() if isinstance(found, ApiError) and found.code == "bodies_full"]
        assert not alive, "an error holds its body until the collector comes"
        await online.assert_works()
        for _, writer in opened:
            writer.close()
        await until(lambda: not served.service.bodies._sizes, "their end")


def test_complete_bodies_make_no_room() -> None:
    bodies = HeldBodies(100)
    with bodies.hold() as first, bodies.hold() as second:
        bodies.grow(first, 300)
        with pytest.raises(ApiError) as caught:
            bodies.grow(second, 1)
        assert (caught.value.status, caught.value.retry_after) == (503, 2)
    with bodies.hold() as third:
        bodies.grow(third, 300)


@asynchronous
async def test_a_body_must_arrive_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "BODY_S", 0.2)
    async with serving(turn("fine")) as served, served.over_socket() as online:
        reader, writer = await connect(online, head(MESSAGES, 1000) + b"{")
        answer = await asyncio.wait_for(reader.readuntil(b"}}"), PATIENCE_S)
        assert b" 408 " in answer
        assert b"not complete after 0.2 seconds" in answer
        writer.close()
        await online.assert_works()


def test_the_limit_of_open_files_stays() -> None:
    """mlx-lm lowers it for ever, and raises an error where it is lower already."""
    code = """
import importlib, resource
import mlxmtp
import mlx_lm.utils
def limit(soft, hard):
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    importlib.reload(mlx_lm.utils)
    return resource.getrlimit(resource.RLIMIT_NOFILE)
print([limit(4500, 4800), limit(1000, 4800), limit(3000, 3000), limit(900, 1000)])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[(4500, 4800), (2048, 4800), (3000, 3000), (1000, 1000)]", done.stderr


def test_connections_stay_below_the_limit_of_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    for files, most in ((1 << 20, 1000), (1024, 824), (256, 64), (2, 1), (connections.resource.RLIM_INFINITY, 1000)):
        monkeypatch.setattr(connections.resource, "getrlimit", lambda _, files=files: (files, files))
        assert connections.connection_limit() == most, files
