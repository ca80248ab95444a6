"""A chat template that does not end: its request is refused, the others are answered, and the server ends."""

from __future__ import annotations

import asyncio
import time

import pytest

from mlxmtp.checkpoints.checkpoint import DEMO
from mlxmtp.engine import template
from mlxmtp.engine.loading import load_tokenizer
from mlxmtp.engine.template import Limits, TemplateProcess
from mlxmtp.server import prompting
from tests.scripted_engine import asynchronous, until
from tests.server.scripted import ALL, CHAT, COUNT, MESSAGES, MINIMAL, parse_error, serving, turn

ENDLESS = (
    "{% if messages[-1].content == 'go' %}"
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    "{% endif %}{{ messages[-1].content }}"
)
GO = {path: {**MINIMAL[MESSAGES], "messages": [{"role": "user", "content": "go"}]} for path in (CHAT, MESSAGES, COUNT)}


@asynchronous
async def test_a_template_that_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    process = TemplateProcess(Limits(seconds=0.5))
    monkeypatch.setattr(template, "renderer", lambda: process)
    tokens = load_tokenizer(DEMO)
    tokens._tokenizer.chat_template = ENDLESS
    async with serving(turn("fine"), tokens=tokens) as served:
        assert (await served.post(CHAT)).status_code == 200  # the process has started
        for path, body in GO.items():
            stuck = asyncio.create_task(served.post(path, body))
            await until(process._lock.locked, "the template")
            for other in ALL:
                assert (await served.post(other)).status_code == 200, (path, other)
            response = await stuck
            assert response.status_code == 400, path
            assert "longer than 0.5 seconds" in parse_error(path, response.json())["message"]
        await served.assert_works()
    process._end()


@asynchronous
async def test_the_server_does_not_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    process = TemplateProcess(Limits(seconds=100))
    for module in (template, prompting):
        monkeypatch.setattr(module, "renderer", lambda: process)
    tokens = load_tokenizer(DEMO)
    tokens._tokenizer.chat_template = ENDLESS
    async with serving(tokens=tokens) as served:
        stuck = asyncio.create_task(served.post(CHAT, GO[CHAT]))
        await until(process._lock.locked, "the template")
        started = time.perf_counter()
    assert time.perf_counter() - started < 50, "half of what the template may take"
    assert (await stuck).status_code == 400
    process._end()
