"""OpenAI's SDK with a real server, whose answers must be those of the engine in this process; and scripted calls."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

from mlxmtp import Engine, GenerationOptions
from mlxmtp.worker.messages import Event, Generate
from tests.scripted_engine import asynchronous
from tests.server.scripted import serving, turn
from tests.worker.driving import SMALL_MODEL

LATTE: list[Any] = [{"role": "user", "content": "Hi, I would like a large latte"}]
PARAMETERS = {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]}
ABOUT = {"name": "get_menu_items", "description": "Search the menu", "parameters": PARAMETERS}
TOOLS: list[Any] = [{"type": "function", "function": ABOUT}]
FLAT: list[Any] = [{"type": "function", **ABOUT}]
CALLED = {"query": "latte"}
CALL = f'<tool_call>\n{{"name": "get_menu_items", "arguments": {json.dumps(CALLED)}}}\n</tool_call>'
STOP = ("total",)
STORY: list[Any] = [{"role": "user", "content": "Tell me about the sea"}]


@pytest.fixture(scope="module")
def client(address: str) -> OpenAI:
    return OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=60)


@pytest.fixture(scope="module")
def expected(engine: Engine) -> str:
    """The engine's own answer, greedy."""
    return engine.generate(STORY, GenerationOptions(max_tokens=24)).text


@pytest.fixture(scope="module")
def stopped(engine: Engine) -> str:
    """The engine's own answer up to `STOP`; the helpers of the SDK refuse answers that a limit ends."""
    answer = engine.generate(STORY, GenerationOptions(max_tokens=64, stop=STOP))
    assert answer.finish_reason == "stop"
    return answer.text


def test_chat(client: OpenAI, expected: str) -> None:
    answer = client.chat.completions.create(model="any", messages=STORY, max_tokens=24)
    assert answer.choices[0].message.content == expected
    assert answer.usage
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.model == SMALL_MODEL.name


def test_chat_streamed(client: OpenAI, stopped: str) -> None:
    options: Any = {
        "model": "any",
        "messages": STORY,
        "max_tokens": 64,
        "stop": STOP,
        "stream_options": {"include_usage": True},
    }
    chunks = list(client.chat.completions.create(stream=True, **options))
    assert "".join(one.choices[0].delta.content or "" for one in chunks if one.choices) == stopped
    assert chunks[-1].usage
    with client.chat.completions.stream(**options) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert final.choices[0].message.content == stopped
    assert {"chunk", "content.delta", "content.done"} <= set(kinds)
    assert final.usage == chunks[-1].usage


@asynccontextmanager
async def calling() -> AsyncIterator[AsyncOpenAI]:
    """A client of a server whose model calls a tool."""

    def answers(command: Generate) -> list[Event]:
        return turn(CALL.removeprefix(command.opening))(command)

    async with serving(answers) as served, served.over_socket() as online:
        base = f"{online.http.base_url}/v1"
        async with AsyncOpenAI(base_url=base, api_key="none", max_retries=0) as client:
            yield client


@asynchronous
async def test_chat_with_tools() -> None:
    """A call is taken whole and streamed, of its own accord and forced, and its result is sent back."""
    forced = {"type": "function", "function": {"name": "get_menu_items"}}
    async with calling() as client:
        for choice in ("auto", "required", forced):
            options: Any = {"model": "any", "messages": LATTE, "tools": TOOLS, "tool_choice": choice}
            whole = (await client.chat.completions.create(**options)).choices[0]
            async with client.chat.completions.stream(**options) as stream:
                kinds = [event.type async for event in stream]
                streamed = (await stream.get_final_completion()).choices[0]
            assert "tool_calls.function.arguments.done" in kinds
            for one in (whole, streamed):
                assert one.finish_reason == "tool_calls"
                assert one.message.tool_calls
                [call] = one.message.tool_calls
                assert call.type == "function"
                assert (call.function.name, json.loads(call.function.arguments)) == ("get_menu_items", CALLED)
                result = {"role": "tool", "tool_call_id": call.id, "content": '[{"name": "Latte", "price": 4.5}]'}
                messages: Any = [*LATTE, one.message.model_dump(exclude_none=True), result]
                after = await client.chat.completions.create(model="any", messages=messages, tools=TOOLS)
                assert after.choices[0].message.tool_calls


def test_completions(client: OpenAI, engine: Engine) -> None:
    expected = engine.generate("Once upon a time", GenerationOptions(max_tokens=20), raw=True).text
    options: Any = {"model": "any", "prompt": "Once upon a time", "max_tokens": 20}
    assert client.completions.create(**options).choices[0].text == expected
    chunks = client.completions.create(stream=True, **options)
    assert "".join(one.choices[0].text for one in chunks if one.choices) == expected


def test_responses(client: OpenAI, expected: str) -> None:
    options: Any = {"model": "any", "input": STORY, "max_output_tokens": 24}
    whole = client.responses.create(**options)
    *events, last = client.responses.create(stream=True, **options)
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert last.type == "response.incomplete"
    assert whole.output_text == text == last.response.output_text == expected
    assert last.response.usage
    assert whole.usage
    assert last.response.usage.output_tokens == whole.usage.output_tokens


@asynchronous
async def test_responses_with_tools() -> None:
    options: Any = {"model": "any", "input": LATTE, "tools": FLAT, "store": False}
    async with calling() as client:
        whole = await client.responses.create(**options)
        async with client.responses.stream(**options) as stream:
            kinds = [event.type async for event in stream]
            final = await stream.get_final_response()
        assert "response.function_call_arguments.done" in kinds
        for answer in (whole, final):
            [call] = answer.output
            assert call.type == "function_call"
            assert (call.name, json.loads(call.arguments)) == ("get_menu_items", CALLED)
            result = {"type": "function_call_output", "call_id": call.call_id, "output": "[]"}
            echoed = [*LATTE, *(item.model_dump(exclude_none=True) for item in answer.output), result]
            after = await client.responses.create(model="any", input=echoed, tools=FLAT)
            assert after.output


def test_concurrent_requests(address: str, expected: str, stopped: str) -> None:
    """Concurrent requests are answered as single ones are."""

    async def ask() -> list[str]:
        async with AsyncOpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=60) as client:

            async def streamed() -> str:
                options: Any = {"model": "any", "messages": STORY, "max_tokens": 64, "stop": STOP}
                async with client.chat.completions.stream(**options) as stream:
                    return (await stream.get_final_completion()).choices[0].message.content or ""

            async def responded() -> str:
                return (await client.responses.create(model="any", input=STORY, max_output_tokens=24)).output_text

            return await asyncio.gather(streamed(), responded(), streamed())

    assert asyncio.run(ask()) == [stopped, expected, stopped]


def test_models(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [SMALL_MODEL.name]
    assert client.models.retrieve("anything").id == SMALL_MODEL.name


def test_errors_are_of_their_classes(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        client.chat.completions.create(model="any", messages=STORY, n=3)
    assert (refusal.value.code, refusal.value.param) == ("unsupported_parameter", "n")
    long: Any = [{"role": "user", "content": "word " * 5000}]
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match="4096 tokens") as refusal:
            client.chat.completions.create(model="any", messages=long, stream=stream)
        assert refusal.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="any", input="hi")


class Order(BaseModel):
    drink: str
    size: int


@asynchronous
async def test_parsed_answers() -> None:
    """JSON schemas with the SDK's `parse`."""
    async with serving(turn('{"drink": "latte", "size": 3}')) as served, served.over_socket() as online:
        base = f"{online.http.base_url}/v1"
        async with AsyncOpenAI(base_url=base, api_key="none", max_retries=0) as client:
            chat = await client.chat.completions.parse(model="any", messages=LATTE, response_format=Order)
            assert chat.choices[0].message.parsed == Order(drink="latte", size=3)
            assert (served.command.settings.json_schema or {})["required"] == ["drink", "size"]
            said = await client.responses.parse(model="any", input=LATTE, text_format=Order)
            assert said.output_parsed == Order(drink="latte", size=3)
            assert (served.command.settings.json_schema or {})["required"] == ["drink", "size"]


@asynchronous
async def test_keys_and_full_queues_have_their_classes() -> None:
    async with serving(queue=0, api_key="secret") as served, served.over_socket() as online:
        base = f"{online.http.base_url}/v1"
        async with AsyncOpenAI(base_url=base, api_key="wrong", max_retries=0) as client:
            with pytest.raises(openai.AuthenticationError):
                await client.models.list()
        async with AsyncOpenAI(base_url=base, api_key="secret", max_retries=0) as client:
            running = asyncio.create_task(client.chat.completions.create(model="any", messages=STORY))
            await asyncio.sleep(0)
            while not served.host.queue.running:
                await asyncio.sleep(0.005)
            with pytest.raises(openai.InternalServerError) as refusal:
                await client.chat.completions.create(model="any", messages=STORY)
            assert refusal.value.status_code == 503
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
