"""Anthropic's SDK with a real server, whose answers must be those of the engine in this process; scripted calls."""

from __future__ import annotations

import asyncio
from typing import Any

import anthropic
import pytest
from anthropic import Anthropic, AsyncAnthropic

from mlxmtp import Engine, GenerationOptions
from mlxmtp.engine.prompt import render
from mlxmtp.worker.messages import Failed, Generate
from tests.scripted_engine import asynchronous, said, until
from tests.server.scripted import serving, tokenizer, turn
from tests.worker.driving import SMALL_MODEL

LATTE: list[Any] = [{"role": "user", "content": "Hi, I would like a large latte"}]
PARAMETERS = {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]}
TOOLS: list[Any] = [{"name": "get_menu_items", "description": "Search the menu", "input_schema": PARAMETERS}]
STORY: list[Any] = [{"role": "user", "content": "Tell me about the sea"}]
CALL = '<tool_call>{"name": "get_menu_items", "arguments": {"query": "a"}}</tool_call>'
THINKING = f"<think>\nHm.\n</think>\n\nI look.\n{CALL}"


@pytest.fixture(scope="module")
def client(address: str) -> Anthropic:
    return Anthropic(base_url=address, api_key="none", max_retries=0, timeout=60)


@pytest.fixture(scope="module")
def expected(engine: Engine) -> str:
    """The engine's own answer, greedy."""
    return engine.generate(STORY, GenerationOptions(max_tokens=24)).text


def texts(message: Any) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


def test_messages(client: Anthropic, expected: str) -> None:
    options: Any = {"model": "any", "messages": STORY, "max_tokens": 24}
    whole = client.messages.create(**options)
    with client.messages.stream(**options) as stream:
        streamed = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert texts(whole) == streamed == texts(final) == expected
    assert whole.stop_reason == final.stop_reason
    assert (whole.usage.output_tokens, whole.model) == (final.usage.output_tokens, SMALL_MODEL.name)


@asynchronous
async def test_tools() -> None:
    options: Any = {"model": "any", "messages": LATTE, "tools": TOOLS, "max_tokens": 200}
    async with serving(turn(CALL)) as served, served.over_socket() as online:
        client = AsyncAnthropic(base_url=str(online.http.base_url), api_key="none", max_retries=0)
        async with client:
            async with client.messages.stream(**options) as stream:
                kinds = [event.type async for event in stream]
                streamed = await stream.get_final_message()
            assert "input_json" in kinds
            for message in (await client.messages.create(**options), streamed):
                [block] = message.content
                assert block.type == "tool_use"
                assert (message.stop_reason, block.name, block.input) == ("tool_use", "get_menu_items", {"query": "a"})
                result = {"type": "tool_result", "tool_use_id": block.id, "content": "[]"}
                answer = {"role": "assistant", "content": message.content}
                echoed: Any = [*LATTE, answer, {"role": "user", "content": [result]}]
                assert (await client.messages.create(**options | {"messages": echoed})).content
            counted = await client.messages.count_tokens(model="any", messages=LATTE, tools=TOOLS)
    about = {"name": "get_menu_items", "description": "Search the menu", "parameters": PARAMETERS}
    rendered = render(tokenizer(), LATTE, tools=[{"type": "function", "function": about}])
    assert counted.input_tokens == len(rendered.tokens)


def test_tokens_are_counted(client: Anthropic, engine: Engine) -> None:
    tokens = len(render(engine.tokenizer, STORY).tokens)
    assert client.messages.count_tokens(model="any", messages=STORY).input_tokens == tokens
    message = client.messages.create(model="any", messages=STORY, max_tokens=1)
    assert message.usage.input_tokens + (message.usage.cache_read_input_tokens or 0) == tokens
    assert message.stop_reason == "max_tokens"


def test_models(client: Anthropic) -> None:
    assert [model.id for model in client.models.list()] == [SMALL_MODEL.name]
    assert client.models.retrieve("claude").id == SMALL_MODEL.name


def test_bad_requests_are_of_their_class(client: Anthropic) -> None:
    image: Any = [{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "http://a"}}]}]
    with pytest.raises(anthropic.BadRequestError, match=r"messages\[0\]\.content\[0\]"):
        client.messages.create(model="any", messages=image, max_tokens=9)
    long: Any = [{"role": "user", "content": "word " * 5000}]
    with pytest.raises(anthropic.BadRequestError, match=r"prompt is too long: \d+ tokens > 4095 maximum"):
        client.messages.create(model="any", messages=long, max_tokens=9)
    with (
        pytest.raises(anthropic.BadRequestError, match="prompt is too long"),
        client.messages.stream(model="any", messages=long, max_tokens=9) as stream,
    ):
        stream.get_final_message()


@asynchronous
async def test_thinking_comes_back_with_its_signature() -> None:
    async with serving(turn(THINKING)) as served, served.over_socket() as online:
        client = AsyncAnthropic(base_url=str(online.http.base_url), api_key="none", max_retries=0)
        async with client:
            options: Any = {"model": "any", "messages": LATTE, "tools": TOOLS, "max_tokens": 100}
            whole = await client.messages.create(**options)
            async with client.messages.stream(**options) as stream:
                kinds = [event.type async for event in stream]
                final = await stream.get_final_message()
            assert {"thinking", "signature", "text", "input_json"} <= set(kinds)
            for message in (whole, final):
                thought, text, use = message.content
                assert (thought.type, text.type, use.type) == ("thinking", "text", "tool_use")
                assert (thought.thinking, text.text, use.input) == ("Hm.", "I look.", {"query": "a"})
                assert thought.signature


@asynchronous
async def test_errors_are_of_their_classes() -> None:
    async with serving(queue=0, api_key="secret", max_body=10_000) as served, served.over_socket() as online:
        base = str(online.http.base_url)
        options: Any = {"model": "any", "messages": STORY, "max_tokens": 9}
        async with AsyncAnthropic(base_url=base, api_key="wrong", max_retries=0) as client:
            with pytest.raises(anthropic.AuthenticationError):
                await client.messages.create(**options)
        async with AsyncAnthropic(base_url=base, auth_token="secret", api_key=None, max_retries=0) as client:
            with pytest.raises(anthropic.NotFoundError):
                await client.messages.batches.list()
            with pytest.raises(anthropic.ContentTooLargeError):
                await client.messages.create(**options, system="x" * 10_000)
            running = asyncio.create_task(client.messages.create(**options))
            await until(lambda: served.engine.sent(Generate), "its turn")
            with pytest.raises(anthropic.InternalServerError) as refusal:
                await client.messages.create(**options)
            assert refusal.value.status_code == 503
            assert refusal.value.body["error"]["type"] == "overloaded_error"  # type: ignore[index, call-overload]
            served.engine.say(said("So "), Failed(0, "failed", "disk full"))
            with pytest.raises(anthropic.InternalServerError, match="disk full"):
                await running
            served.engine.on(Generate, [said("So "), Failed(0, "failed", "disk full")])
            with pytest.raises(anthropic.APIStatusError, match="disk full"):
                async with client.messages.stream(**options) as stream:
                    await stream.get_final_message()
