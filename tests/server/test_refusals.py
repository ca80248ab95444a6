"""Errors of requests: they name the field, have the shape of the protocol, and leave the server working."""

from __future__ import annotations

from typing import Any

import pytest

from mlxmtp.server.errors import ApiError
from tests.scripted_engine import asynchronous
from tests.server.scripted import (
    ALL,
    CHAT,
    COMPLETIONS,
    COUNT,
    MESSAGES,
    MINIMAL,
    RESPONSES,
    parse,
    parse_error,
    serving,
    turn,
)

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
FLAT = {"type": "function", "name": "f", "parameters": {"type": "object"}}

WRONG: list[tuple[str, dict[str, Any], str]] = [
    *[(path, {"n": 2}, "n") for path in ALL],
    *[(path, {"temperature": value}, "temperature") for path in ALL for value in (-1, "warm", True, [], 1e300)],
    *[(path, {"logit_bias": value}, "logit_bias") for path in ALL for value in ([], 0, "", {"a": 1}, {"1": 101})],
    *[(CHAT, {"logit_bias": value}, "logit_bias") for value in ({"1" * 5000: 1}, {"-1": 1}, {"²": 1}, {"1": True})],
    *[(path, {"stream": 1}, "stream") for path in ALL],
    *[(CHAT, {name: 1.5}, name) for name in ("top_p", "min_p", "top_k", "max_tokens", "seed")],
    *[(CHAT, {name: 2.5}, name) for name in ("frequency_penalty", "presence_penalty")],
    *[(CHAT, {"repetition_penalty": value}, "repetition_penalty") for value in (0, -1, 10**400)],
    *[(CHAT, {name: 0.5}, name) for name in ("typical_p", "xtc_probability", "dry_multiplier", "mirostat")],
    *[(path, {name: 1}, name) for path in ALL for name in ("top_a", "xtc_probability", "dry_multiplier", "mirostat")],
    *[(CHAT, {name: 1}, name) for name in ("dynatemp_range", "top_n_sigma", "min_tokens", "prompt_logprobs")],
    *[(CHAT, {name: 0}, name) for name in ("typical_p", "tfs_z")],
    *[(path, {"guided_json": {"type": "object"}}, "guided_json") for path in ALL],
    *[(path, {name: True}, name) for path in ALL for name in ("echo", "ignore_eos", "use_beam_search")],
    *[(CHAT, {name: "[ab]+"}, name) for name in ("grammar", "guided_regex", "guided_grammar", "structured_outputs")],
    *[(CHAT, {name: ["a"]}, name) for name in ("guided_choice", "stop_token_ids", "bad_words")],
    (CHAT, {"continue_final_message": True}, "continue_final_message"),
    (CHAT, {"add_generation_prompt": False}, "add_generation_prompt"),
    *[(path, {"repeat_penalty": value}, "repeat_penalty") for path in ALL for value in (0, "much")],
    *[(path, {name: 0}, name) for path in ALL for name in ("max_completion_tokens", "max_output_tokens", "n_predict")],
    *[(CHAT, {name: [{}]}, name) for name in ("functions", "audio")],
    *[(CHAT, {"stop": value}, "stop") for value in ("", [""], [1], {}, 0, False)],
    (CHAT, {"modalities": ["text", "audio"]}, "modalities"),
    (CHAT, {"top_logprobs": 3}, "top_logprobs"),
    (CHAT, {"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    (CHAT, {"chat_template_kwargs": {"chat_template": "x"}}, "chat_template_kwargs.chat_template"),
    (CHAT, {"reasoning": 7}, "reasoning"),
    (CHAT, {"think": []}, "think"),
    (CHAT, {"response_format": {"type": "json_object", "schema": 7}}, "response_format.schema"),
    (CHAT, {"json_schema": "x"}, "json_schema"),
    (CHAT, {"format": "xml"}, "format"),
    (CHAT, {"json_schema": {"type": "string"}, "format": {"type": "array"}}, "format"),
    (CHAT, {"response_format": {"type": "xml"}}, "response_format.type"),
    (CHAT, {"response_format": {"type": "json_schema"}}, "response_format.schema"),
    (CHAT, {"tools": [TOOL], "tool_choice": "maybe"}, "tool_choice"),
    (CHAT, {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice"),
    (CHAT, {"tool_choice": "required"}, "tool_choice"),
    (CHAT, {"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
    (CHAT, {"tools": {"a": 1}}, "tools"),
    (CHAT, {"messages": []}, "messages"),
    (CHAT, {"messages": "hi"}, "messages"),
    (CHAT, {"messages": [{"role": "system", "content": "Be brief."}]}, "messages"),
    (CHAT, {"messages": [{"role": "wizard", "content": "hi"}]}, "messages[0].role"),
    (CHAT, {"messages": [{"role": "user", "content": 7}]}, "messages[0].content"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0]"),
    *[(COMPLETIONS, {"prompt": value}, "prompt") for value in ("", [], ["a", "b"], [[1], [2]], [True], {}, [1, "a"])],
    *[(COMPLETIONS, {name: value}, name) for name, value in (("echo", True), ("suffix", "end"), ("best_of", 3))],
    (RESPONSES, {"previous_response_id": "resp_1"}, "previous_response_id"),
    (RESPONSES, {"background": True}, "background"),
    (COMPLETIONS, {"tools": [TOOL]}, "tools"),
    (RESPONSES, {"input": []}, "input"),
    (RESPONSES, {"input": [{"role": "system", "content": "Be brief."}]}, "input"),
    (RESPONSES, {"metadata": "a"}, "metadata"),
    (RESPONSES, {"top_logprobs": 2}, "top_logprobs"),
    (RESPONSES, {"include": ["reasoning.encrypted_content", "message.output_text.logprobs"]}, "include"),
    (RESPONSES, {"max_tool_calls": 1}, "max_tool_calls"),
    *[(path, {"response_format": {"type": "xml"}}, "response_format.type") for path in (RESPONSES, MESSAGES)],
    *[(path, {"logprobs": True}, "logprobs") for path in (RESPONSES, MESSAGES)],
    (MESSAGES, {"mcp_servers": [{"type": "url", "url": "http://a"}]}, "mcp_servers"),
    (MESSAGES, {"container": "c"}, "container"),
    (RESPONSES, {"input": [{"type": "item_reference", "id": "rs"}]}, "input[0].type"),
    (RESPONSES, {"tools": [FLAT], "tool_choice": {"type": "web_search"}}, "tool_choice.type"),
    (
        RESPONSES,
        {"tools": [FLAT], "tool_choice": {"type": "allowed_tools", "mode": "x"}},
        "tool_choice.mode",
    ),
    (MESSAGES, {"thinking": {"type": "maybe"}}, "thinking.type"),
    (MESSAGES, {"tool_choice": {"type": "some"}}, "tool_choice.type"),
    (MESSAGES, {"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages[0].content[0]"),
    (MESSAGES, {"output_config": {"format": {"type": "xml"}}}, "output_config.format.type"),
    (MESSAGES, {"max_tokens": 0}, "max_tokens"),
]


@pytest.mark.parametrize("path", ALL)
def test_an_unsupported_field_is_named(path: str) -> None:
    wrong = [(more, name) for where, more, name in WRONG if where == path]
    assert len(wrong) > 20
    for more, name in wrong:
        refusal = refused(path, more)
        assert refusal, f"accepted: {more}"
        assert (refusal.status, refusal.param) == (400, name), more
        assert name.split("[")[0].split(".")[0] in str(refusal), more
        assert len(str(refusal)) < 400, more


def refused(path: str, more: dict[str, Any]) -> ApiError | None:
    """The error of a body with these fields."""
    try:
        parse(path, **more)
    except ApiError as error:
        return error
    return None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"hello",
        b"\xff\xfe\x00",
        b"[]",
        b'"text"',
        b"null",
        b"7",
        b'{"messages": [{"role": "user", "content": "hi"}], "input": "hi", "tools": NaN}',
        b'{"messages": [{"role": "user", "content": "hi"}], "input": "hi", "tools": -1e999}',
        b'{"a": ' * 3000,
        b'{"a": ' + b"[" * 950 + b"]" * 950 + b"}",
        b'{"temperature": ' + b"[" * 950 + b"]" * 950 + b"}",
        b"9" * 5000,
    ],
)
@pytest.mark.parametrize("path", [*ALL, COUNT])
@asynchronous
async def test_bodies_that_are_not_requests(path: str, body: bytes) -> None:
    async with serving(turn("fine")) as served:
        response = await served.http.post(path, content=body)
        assert response.status_code == 400
        assert parse_error(path, response.json())["type"] == "invalid_request_error"
        await served.assert_works()


@pytest.mark.parametrize("path", [*ALL, COUNT])
@asynchronous
async def test_half_a_surrogate_pair(path: str) -> None:
    async with serving(turn("fine")) as served:
        body = b'{"messages": [{"role": "user", "content": [{"type": "\\udfff"}]}], "input": [{"role": "\\ud800"}]}'
        response = await served.http.post(path, content=body)
        assert response.status_code == 400
        assert parse_error(path, response.json())
        response = await served.http.post(path, content=b'{"chat_template_kwargs": {"\\ud800": 1}}')
        assert response.status_code == 400
        await served.assert_works()


@pytest.mark.parametrize("path", ALL)
@asynchronous
async def test_a_prompt_that_is_too_long_is_refused_with_both_numbers(path: str) -> None:
    async with serving(turn("fine"), context=40) as served:
        long = " ".join(["word"] * 100)
        bodies = {COMPLETIONS: {"prompt": long}, RESPONSES: {"input": long}}
        body = bodies.get(path, {"messages": [{"role": "user", "content": long}]})
        for stream in (False, True):
            response = await served.post(path, body | {"stream": stream})
            assert response.status_code == 400
            about = parse_error(path, response.json())
            assert about.get("code", "context_length_exceeded") == "context_length_exceeded"
            [tokens] = {word for word in about["message"].split() if word.isdigit()} - {"40", "39"}
            assert "maximum context length is 40 tokens" in about["message"]
            assert f"your messages resulted in {tokens} tokens" in about["message"]
            assert f"prompt is too long: {tokens} tokens > 39 maximum" in about["message"]
        await served.assert_works()


@asynchronous
async def test_an_answer_is_limited_by_the_context() -> None:
    async with serving(turn("fine"), context=40) as served:
        await served.post(CHAT)
        left = 40 - len(served.command.messages)
        assert served.command.settings.max_tokens == left
        await served.post(CHAT, MINIMAL[CHAT] | {"max_tokens": 100})
        assert served.command.settings.max_tokens == left
        await served.post(CHAT, MINIMAL[CHAT] | {"max_tokens": 3})
        assert served.command.settings.max_tokens == 3


@asynchronous
async def test_tokens_outside_the_vocabulary() -> None:
    async with serving(turn("fine")) as served:
        response = await served.post(COMPLETIONS, {"prompt": [1, 10**9]})
        assert response.status_code == 400
        assert "1000000000" in parse_error(COMPLETIONS, response.json())["message"]
        assert parse_error(COMPLETIONS, response.json())["param"] == "prompt"
        response = await served.post(CHAT, MINIMAL[CHAT] | {"logit_bias": {"5": 1, "999999": 1}})
        assert response.status_code == 400
        assert "999999" in parse_error(CHAT, response.json())["message"]
        assert parse_error(CHAT, response.json())["param"] == "logit_bias"


def nested(depth: int, inner: str = '{"type": "object"}') -> str:
    return '{"type": "array", "items": ' * depth + inner + "}" * depth


@pytest.mark.parametrize("depth", [20, 80, 120, 330, 400, 480, 900])
@asynchronous
async def test_deeply_nested_bodies(depth: int) -> None:
    chat, responses = '"messages": [{"role": "user", "content": "hi"}]', '"input": "hi"'
    tool = f'"tools": [{{"type": "function", "name": "f", "parameters": {nested(depth)}}}]'
    space = '"tools": [' + '{"type": "namespace", "tools": [' * depth + "]}" * depth + "]"
    schema = f'"response_format": {{"type": "json_schema", "json_schema": {{"schema": {nested(depth)}}}}}'
    async with serving(turn("fine")) as served:
        for path, start, more in (
            (CHAT, chat, tool),
            (RESPONSES, responses, tool),
            (RESPONSES, responses, space),
            (COUNT, chat, space),
            (CHAT, chat, schema),
        ):
            response = await served.http.post(path, content=f"{{{start}, {more}}}")
            if depth == 20:
                assert response.status_code == 200, response.text
            else:
                assert response.status_code in (200, 400), (path, more[:30], response.text)
            if depth > 100:
                assert "at most 100 levels" in parse_error(path, response.json())["message"]
        await served.assert_works()
