"""Prompts of megabytes are refused before they are tokenized as a whole, and do not block other requests."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from mlxmtp.server import prompting
from mlxmtp.server.prompting import CHUNK_CHARACTERS, LONG_CHARACTERS
from tests.scripted_engine import asynchronous, until
from tests.server.scripted import (
    ALL,
    CHAT,
    COMPLETIONS,
    COUNT,
    MESSAGES,
    MINIMAL,
    RESPONSES,
    parse_error,
    serving,
    tokenizer,
    turn,
)

SHORTER = 10
"""A test with whole prompts takes texts and chunks that are shorter by this factor."""


class RecordingTokenizer:
    """The demo's tokenizer. It records the lengths of its texts, and can be blocked at long ones.

    Args:
        permits: each long text waits for a permit; None: none waits.
    """

    def __init__(self, permits: threading.Semaphore | None = None) -> None:
        self.lengths: list[int] = []
        self._permits = permits

    def __getattr__(self, name: str) -> Any:
        return getattr(tokenizer(), name)

    def __len__(self) -> int:
        return len(tokenizer())

    def encode(self, text: str, **options: Any) -> Any:
        self.lengths.append(len(text))
        if self._permits and len(text) == CHUNK_CHARACTERS:
            assert self._permits.acquire(timeout=20)
        return tokenizer().encode(text, **options)


def body_with(path: str, text: str) -> dict[str, Any]:
    field = {COMPLETIONS: "prompt", RESPONSES: "input"}.get(path)
    if field:
        return MINIMAL[path] | {field: text}
    return MINIMAL[MESSAGES if path == COUNT else path] | {"messages": [{"role": "user", "content": text}]}


@pytest.mark.parametrize("path", ALL)
@asynchronous
async def test_a_prompt_that_cannot_fit_is_not_tokenized_as_a_whole(path: str) -> None:
    recording = RecordingTokenizer()
    async with serving(turn("fine"), tokens=recording, max_body=10**7, context=20_000) as served:
        response = await served.post(path, body_with(path, "tell me more " * 300_000))
        assert response.status_code == 400
        message = parse_error(path, response.json())["message"]
        assert "tokens or more" in message
        assert "> 19999 maximum" in message
        assert max(recording.lengths) == CHUNK_CHARACTERS
        assert sum(recording.lengths) <= 10 * CHUNK_CHARACTERS
        assert served.engine.commands[1:] == []
        await served.assert_works()


@pytest.mark.parametrize("text", ["tell me more ", "\u00e9\u0301 \U0001f388", "a"])
@asynchronous
async def test_a_long_prompt_that_just_fits_is_answered(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The count by chunks never exceeds the tokens of the prompt."""
    long = LONG_CHARACTERS // SHORTER
    monkeypatch.setattr(prompting, "LONG_CHARACTERS", long)
    monkeypatch.setattr(prompting, "CHUNK_CHARACTERS", CHUNK_CHARACTERS // SHORTER)
    body = body_with(CHAT, text * (long // len(text) + 1))
    tokens = len(tokenizer().apply_chat_template(body["messages"], add_generation_prompt=True))
    for context, status in ((tokens, 400), (tokens + 1, 200)):
        async with serving(turn("fine"), max_body=10**7, context=context) as served:
            assert (await served.post(CHAT, body)).status_code == status
            counted = (await served.post(COUNT, body_with(COUNT, body["messages"][0]["content"]))).json()
            assert abs(counted["input_tokens"] - tokens) <= tokens // 50


@asynchronous
async def test_others_are_answered_between_the_chunks_and_a_disconnect_ends_them() -> None:
    permits = threading.Semaphore(0)
    recording = RecordingTokenizer(permits)
    async with (
        serving(turn("fine"), tokens=recording, max_body=10**7, context=10**7) as served,
        served.over_socket() as online,
    ):
        long = asyncio.create_task(online.post(COUNT, body_with(COUNT, "more " * 500_000)))
        await until(lambda: CHUNK_CHARACTERS in recording.lengths, "the first piece")
        short = asyncio.create_task(online.post(CHAT))
        await asyncio.sleep(0.05)
        permits.release()
        await until(lambda: recording.lengths.count(CHUNK_CHARACTERS) == 2, "the second piece")
        permits.release()
        assert (await asyncio.wait_for(short, 20)).status_code == 200
        assert not long.done()
        long.cancel()
        await until(lambda: any(f"{COUNT} 499" in line for line in served.log), "its line in the log")
        begun = recording.lengths.count(CHUNK_CHARACTERS)
        permits.release(100)
        await online.assert_works()
        assert recording.lengths.count(CHUNK_CHARACTERS) <= begun + 1
