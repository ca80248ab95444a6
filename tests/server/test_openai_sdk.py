"""OpenAI's SDK with a real server; its answers must be those of the engine in this process."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

from mlxmtp import Engine, GenerationOptions
from mlxmtp.engine.prompt import render
from tests.scripted_engine import asynchronous
from tests.server.scripted import serving, turn

LATTE: list[Any] = [{"role": "user", "content": "Hi, I would like a large latte"}]
PARAMETERS = {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]}
ABOUT = {"name": "get_menu_items", "description": "Search the menu", "parameters": PARAMETERS}
TOOLS: list[Any] = [{"type": "function", "function": ABOUT}]
FLAT: list[Any] = [{"type": "function", **ABOUT}]
STORY: list[Any] = [{"role": "user", "content": "Tell me about the sea"}]


@pytest.fixture(scope="module")
def client(address: str) -> OpenAI:
    return OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=60)


@pytest.fixture(scope="module")
def expected(engine: Engine) -> str:
    """The engine's own answer, greedy."""
    return engine.generate(STORY, GenerationOptions(max_tokens=64)).text


@pytest.fixture(scope="module")
def called(engine: Engine) -> dict[str, Any]:
    """The arguments of the engine's own tool call."""
    tokens = render(engine.tokenizer, LATTE, tools=TOOLS).tokens
    text = engine.generate(tokens, GenerationOptions(max_tokens=200)).text
    content = json.loads(text.removeprefix("<tool_call>").removesuffix("</tool_call>"))
    assert content["name"] == "get_menu_items"
    arguments: dict[str, Any] = content["arguments"]
    return arguments


def test_chat(client: OpenAI, expected: str) -> None:
    answer = client.chat.completions.create(model="any", messages=STORY, max_tokens=64)
    assert answer.choices[0].message.content == expected
    assert answer.usage
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.model == "demo"


def test_chat_streamed(client: OpenAI, expected: str) -> None:
    options: Any = {"model": "any", "messages": STORY, "max_tokens": 64, "stream_options": {"include_usage": True}}
    chunks = list(client.chat.completions.create(stream=True, **options))
    assert "".join(one.choices[0].delta.content or "" for one in chunks if one.choices) == expected
    assert chunks[-1].usage
    with client.chat.completions.stream(**options) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert final.choices[0].message.content == expected
    assert {"chunk", "content.delta", "content.done"} <= set(kinds)
    assert final.usage == chunks[-1].usage


def test_chat_with_tools(client: OpenAI, called: dict[str, Any]) -> None:
    options: Any = {"model": "any", "messages": LATTE, "tools": TOOLS}
    whole = client.chat.completions.create(**options).choices[0]
    with client.chat.completions.stream(**options) as stream:
        kinds = [event.type for event in stream]
        streamed = stream.get_final_completion().choices[0]
    assert "tool_calls.function.arguments.done" in kinds
    for choice in (whole, streamed):
        assert choice.finish_reason == "tool_calls"
        assert choice.message.tool_calls
        [call] = choice.message.tool_calls
        assert call.type == "function"
        assert (call.function.name, json.loads(call.function.arguments)) == ("get_menu_items", called)
        result = {"role": "tool", "tool_call_id": call.id, "content": '[{"name": "Latte", "price": 4.5}]'}
        messages: Any = [*LATTE, choice.message.model_dump(exclude_none=True), result]
        after = client.chat.completions.create(model="any", messages=messages, tools=TOOLS, max_tokens=8)
        assert after.choices[0].message.content or after.choices[0].message.tool_calls


def test_a_forced_call(client: OpenAI) -> None:
    for choice in ("required", {"type": "function", "function": {"name": "get_menu_items"}}):
        options: Any = {"model": "any", "messages": STORY, "tools": TOOLS, "tool_choice": choice, "max_tokens": 60}
        message = client.chat.completions.create(**options).choices[0].message
        assert message.tool_calls
        assert [call.function.name for call in message.tool_calls if call.type == "function"] == ["get_menu_items"]


def test_completions(client: OpenAI, engine: Engine) -> None:
    expected = engine.generate("Once upon a time", GenerationOptions(max_tokens=20), raw=True).text
    options: Any = {"model": "any", "prompt": "Once upon a time", "max_tokens": 20}
    assert client.completions.create(**options).choices[0].text == expected
    chunks = client.completions.create(stream=True, **options)
    assert "".join(one.choices[0].text for one in chunks if one.choices) == expected


def test_responses(client: OpenAI, expected: str) -> None:
    options: Any = {"model": "any", "input": STORY, "max_output_tokens": 64}
    whole = client.responses.create(**options)
    with client.responses.stream(**options) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert whole.output_text == text == final.output_text == expected
    assert final.usage
    assert whole.usage
    assert final.usage.output_tokens == whole.usage.output_tokens


def test_responses_with_tools(client: OpenAI, called: dict[str, Any]) -> None:
    options: Any = {"model": "any", "input": LATTE, "tools": FLAT, "store": False}
    whole = client.responses.create(**options)
    with client.responses.stream(**options) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert "response.function_call_arguments.done" in kinds
    for answer in (whole, final):
        [call] = answer.output
        assert call.type == "function_call"
        assert (call.name, json.loads(call.arguments)) == ("get_menu_items", called)
        result = {"type": "function_call_output", "call_id": call.call_id, "output": "[]"}
        echoed = [*LATTE, *(item.model_dump(exclude_none=True) for item in answer.output), result]
        after = client.responses.create(model="any", input=echoed, tools=FLAT, max_output_tokens=8)
        assert after.output


def test_concurrent_requests(address: str, expected: str, called: dict[str, Any]) -> None:
    """Concurrent requests are answered as single ones are."""

    async def ask() -> list[Any]:
        async with AsyncOpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=60) as client:

            async def streamed() -> str:
                options: Any = {"model": "any", "messages": STORY, "max_tokens": 64}
                async with client.chat.completions.stream(**options) as stream:
                    return (await stream.get_final_completion()).choices[0].message.content or ""

            async def responded() -> str:
                async with client.responses.stream(model="any", input=STORY, max_output_tokens=64) as stream:
                    return (await stream.get_final_response()).output_text

            async def tooled() -> Any:
                answer = await client.chat.completions.create(model="any", messages=LATTE, tools=TOOLS)
                [call] = answer.choices[0].message.tool_calls or []
                assert call.type == "function"
                return json.loads(call.function.arguments)

            return await asyncio.gather(streamed(), responded(), tooled())

    assert asyncio.run(ask()) == [expected, expected, called]


def test_models(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["demo"]
    assert client.models.retrieve("anything").id == "demo"


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
