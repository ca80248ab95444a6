"""Malformed bodies: never an internal error, always an answer or an error in the protocol's shape."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlxmtp.worker.messages import Generate
from tests.server.scripted import (
    CHAT,
    COMPLETIONS,
    COUNT,
    MESSAGES,
    RESPONSES,
    LocalServer,
    parse_error,
    parse_events,
    serving,
    turn,
)

SCHEMA = {"type": "object", "properties": {"a": {"type": ["integer", "null"]}, "b": {"items": {"enum": ["x"]}}}}
FUNCTION = {"name": "f", "description": "does it", "parameters": SCHEMA}
SAMPLING = {
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": 3,
    "min_p": 0.1,
    "seed": 1,
    "n": 1,
    "stop": ["END"],
    "frequency_penalty": 0.1,
    "presence_penalty": 0.1,
    "repetition_penalty": 1.1,
    "logit_bias": {"5": 1},
    "stream_options": {"include_usage": True},
    "user": "me",
    "metadata": {"user_id": "me"},
}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
REASONED = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm"}], "encrypted_content": "x"}
RESULT = {"type": "tool_result", "tool_use_id": "c", "content": "fine", "is_error": False}
FULL: dict[str, dict[str, Any]] = {
    CHAT: SAMPLING
    | {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "hi"}]},
            {"role": "assistant", "content": None, "reasoning_content": "Hm", "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "c", "content": "fine"},
        ],
        "tools": [{"type": "function", "function": FUNCTION}],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "logprobs": True,
        "top_logprobs": 2,
        "max_tokens": 9,
        "max_completion_tokens": 9,
        "reasoning_effort": "low",
        "chat_template_kwargs": {"enable_thinking": True},
        "parallel_tool_calls": True,
    },
    COMPLETIONS: SAMPLING
    | {"prompt": [1, 2], "max_tokens": 9, "logprobs": 1, "echo": False, "suffix": "", "best_of": 1},
    RESPONSES: SAMPLING
    | {
        "instructions": "Be brief.",
        "input": [
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]},
            REASONED,
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "fine"}]},
        ],
        "tools": [
            {"type": "function", **FUNCTION},
            {"type": "namespace", "name": "n", "tools": [{"type": "function", **FUNCTION}]},
            {"type": "web_search"},
        ],
        "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]},
        "reasoning": {"effort": "low", "summary": "auto"},
        "text": {"format": {"type": "text"}, "verbosity": "low"},
        "include": ["reasoning.encrypted_content"],
        "max_output_tokens": 9,
        "prompt_cache_key": "k",
    },
    MESSAGES: SAMPLING
    | {
        "system": [{"type": "text", "text": "Be brief."}],
        "messages": [
            {"role": "user", "content": "hi"},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "Hm", "signature": "s"},
                    {"type": "text", "text": "I look."},
                    {"type": "tool_use", "id": "c", "name": "f", "input": {"a": 1}},
                ],
            },
            {"role": "user", "content": [RESULT]},
        ],
        "tools": [{"name": "f", "description": "does it", "input_schema": SCHEMA}],
        "tool_choice": {"type": "tool", "name": "f", "disable_parallel_tool_use": True},
        "thinking": {"type": "enabled", "budget_tokens": 9},
        "output_config": {"effort": "low"},
        "stop_sequences": ["END"],
        "max_tokens": 9,
    },
}
FULL[COUNT] = FULL[MESSAGES]
PATHS = sorted(FULL)

odd_text = st.text(st.characters() | st.sampled_from("\x00\ud800\udfff\u2028\ufeff\U0001f600"), max_size=9)
words = st.sampled_from(
    [
        "auto",
        "none",
        "required",
        "function",
        "system",
        "tool",
        "assistant",
        "text",
        "json_schema",
        "<think>",
        "f",
        "type",
    ]
)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-3, 30)
    | st.sampled_from([2**31, 2**63, 2**64, -(2**64), 10**30, 10**400, 1e308, -1e308, 5e-324, 0.5, -0.0])
    | words
    | odd_text
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words | odd_text, inner, max_size=3)
)


def paths(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path to every value in a body."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in items:
        yield (*at, name)
        yield from paths(inner, (*at, name))


@st.composite
def bodies(draw: st.DrawFn, path: str) -> dict[str, Any]:
    """A full body with one to three values replaced, dropped, nested, wrapped, doubled or extended."""
    body: dict[str, Any] = json.loads(json.dumps(FULL[path]))
    kept = draw(st.sets(st.sampled_from(sorted(body))))
    needed = {"messages", "input", "prompt"}
    body = {name: value for name, value in body.items() if name in kept | needed}
    for _ in range(draw(st.integers(1, 3))):
        if not (all_paths := list(paths(body))):
            break
        *path_to, name = draw(st.sampled_from(all_paths))
        holder: Any = body
        for step in path_to:
            holder = holder[step]
        change = draw(st.sampled_from(["replace", "drop", "nest", "wrap", "double", "grow"]))
        if change == "replace":
            holder[name] = draw(values)
        elif change == "drop":
            del holder[name]
        elif change == "nest":
            holder[name] = {draw(words): holder[name]}
        elif change == "wrap":
            holder[name] = [holder[name]]
        elif change == "double" and isinstance(holder[name], str | list):
            holder[name] = holder[name] + holder[name]
        elif change == "grow" and isinstance(holder[name], dict):
            holder[name][draw(words | odd_text)] = draw(values)
    if draw(st.booleans()):
        body["stream"] = True
    return body


class FuzzServer:
    """A server for many examples. Its event loop runs only during a request."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        self._stack = AsyncExitStack()
        self.served: LocalServer = self._runner.run(self._open())

    async def _open(self) -> LocalServer:
        return await self._stack.enter_async_context(serving())

    def close(self) -> None:
        self._runner.run(self._stack.aclose())
        self._runner.close()

    def ask(self, path: str, body: bytes) -> int:
        """Post a body; returns the status."""
        return self._runner.run(self._ask(path, body))

    async def _ask(self, path: str, body: bytes) -> int:
        self.served.engine.on(Generate, turn('Fine.\n<tool_call>{"name": "f", "arguments": {"a": "1"}}</tool_call>'))
        response = await self.served.http.post(path, content=body)
        if response.headers["content-type"].startswith("text/event-stream"):
            assert response.status_code == 200
            text = json.dumps([one.data for one in parse_events(response.text)])
            assert '"error": {' not in text, text
        elif response.status_code != 200:
            assert response.status_code == 400, response.text
            assert parse_error(path, response.json())
        else:
            assert response.json()
        await self.served.assert_works()
        return response.status_code


@pytest.fixture(scope="module")
def running() -> Iterator[FuzzServer]:
    one = FuzzServer()
    yield one
    one.close()


def ordinary(count: int) -> Any:
    """Settings for the same examples in every run."""
    checks = list(HealthCheck)
    return settings(max_examples=count, derandomize=True, deadline=None, database=None, suppress_health_check=checks)


@pytest.mark.parametrize("path", PATHS)
def test_the_full_bodies_are_valid(running: FuzzServer, path: str) -> None:
    assert running.ask(path, json.dumps(FULL[path]).encode()) == 200


@pytest.mark.parametrize("path", PATHS)
@ordinary(40)
@given(data=st.data())
def test_mutated_bodies(running: FuzzServer, path: str, data: st.DataObject) -> None:
    running.ask(path, json.dumps(data.draw(bodies(path))).encode())


@pytest.mark.exhaustive
@pytest.mark.parametrize("path", PATHS)
@ordinary(500)
@given(data=st.data())
def test_more_mutated_bodies(running: FuzzServer, path: str, data: st.DataObject) -> None:
    running.ask(path, json.dumps(data.draw(bodies(path))).encode())


@pytest.mark.parametrize("path", PATHS)
@ordinary(40)
@given(body=st.binary(max_size=40) | values.map(lambda value: json.dumps(value).encode()))
def test_random_bodies(running: FuzzServer, path: str, body: bytes) -> None:
    running.ask(path, body)
