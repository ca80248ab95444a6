"""Switches of thinking and formats of answers, as clients of other servers write them: honoured in every protocol."""

from __future__ import annotations

from typing import Any

import pytest

from mlxmtp.checkpoints.checkpoint import DEMO
from mlxmtp.engine.loading import load_tokenizer
from mlxmtp.server.errors import ApiError, internal_error, queue_full
from tests.scripted_engine import asynchronous
from tests.server.scripted import ALL, CHAT, COMPLETIONS, MESSAGES, MINIMAL, RESPONSES, parse, serving, tokenizer, turn

TURNS = (CHAT, MESSAGES, RESPONSES)
WORDS = ("disabled", "disable", "false", "no", "False")
OFF: list[dict[str, Any]] = [
    {"chat_template_kwargs": {"enable_thinking": False}},
    {"chat_template_kwargs": {"thinking": False}},
    {"enable_thinking": False},
    {"thinking": {"type": "disabled"}},
    {"thinking": False},
    {"think": False},
    {"think": "none"},
    {"reasoning": {"effort": "none"}},
    {"reasoning": {"enabled": False}},
    {"reasoning": {"enabled": False, "effort": "high"}},
    {"reasoning": {"max_tokens": 0}},
    {"reasoning": "off"},
    {"disable_reasoning": True},
    {"reasoning_effort": "none"},
    {"reasoning_effort": "minimal"},
    {"think": False, "reasoning_effort": "high"},
    *({name: word} for name in ("think", "thinking", "reasoning", "reasoning_effort") for word in WORDS),
    *({"reasoning": {"effort": word}} for word in WORDS),
    {"thinking_budget": 0},
    {"reasoning_budget": 0},
    {"thinking_token_budget": 0},
]
ON: list[dict[str, Any]] = [
    {"chat_template_kwargs": {"thinking": True}},
    {"enable_thinking": True},
    {"thinking": {"type": "enabled", "budget_tokens": 4000}},
    {"think": True},
    {"think": "high"},
    {"reasoning": {"effort": "low"}},
    {"reasoning": {"enabled": True}},
    {"reasoning": {"max_tokens": 2000}},
    {"reasoning_effort": "high"},
]
OPEN: list[dict[str, Any]] = [
    {},
    {"thinking": {"type": "adaptive"}},
    {"thinking": {}},
    {"thinking": {"budget_tokens": 4000}},
    {"reasoning": {}},
    {"reasoning": {"summary": "auto", "exclude": True}},
    {"disable_reasoning": False},
    {"include_reasoning": True},
    {"chat_template_kwargs": {"custom": 1}},
]
TEMPLATE = (
    "{% for m in messages %}{{ m.content }}{% endfor %}|"
    "{{ thinking if thinking is defined else '-' }}|{{ reasoning_effort or '-' }}|"
    "{{ preserve_thinking if preserve_thinking is defined else '-' }}|{{ custom or '-' }}|"
    "{% if reasoning_effort == 'unheard' %}{{ raise_exception('efforts are low and high') }}{% endif %}"
)
SCHEMA = {"type": "object", "properties": {"a": {"const": 7}}, "required": ["a"]}


def with_template(template: str) -> Any:
    tokens = load_tokenizer(DEMO)
    tokens._tokenizer.chat_template = template
    return tokens


@pytest.mark.parametrize("path", TURNS)
def test_thinking_is_switched_in_every_spelling(path: str) -> None:
    for bodies, expected in ((OFF, False), (ON, True), (OPEN, None)):
        for more in bodies:
            request = parse(path, **more)
            assert request.options.thinking is expected, more
            assert request.dropped == (), more


def test_budgets_of_the_thinking() -> None:
    for path in TURNS:
        for more, budget in (
            ({}, None),
            ({"thinking": {"type": "enabled", "budget_tokens": 4000}}, 4000),
            ({"reasoning": {"max_tokens": 2000}}, 2000),
            ({"thinking_budget": 300, "max_tokens": 500}, 300),
            ({"reasoning_budget": -1}, None),
            ({"reasoning_budget": 0}, None),
            ({"thinking_token_budget": 9.0, "reasoning_budget": 7}, 7),
        ):
            request = parse(path, **more)  # type: ignore[arg-type]
            assert (request.options.thinking_budget, request.dropped) == (budget, ()), (path, more)


def test_variables_of_the_template() -> None:
    """What the client names is passed on; what could change the template or the messages is refused."""
    for path in TURNS:
        given = {"enable_thinking": True, "preserve_thinking": True, "custom": [1], "absent": None}
        assert parse(path, chat_template_kwargs=given).thinking.variables == {"preserve_thinking": True, "custom": [1]}
        kept = {"preserve_thinking": True, "clear_thinking": False}
        for more in ({"preserve_thinking": True}, {"thinking": {"type": "enabled", "clear_thinking": False}}):
            assert parse(path, **more).thinking.hints == kept, more
        for name in ("messages", "tools", "chat_template", "add_generation_prompt", "tokenize"):
            with pytest.raises(ApiError, match="does not support") as refusal:
                parse(path, chat_template_kwargs={name: True})
            assert refusal.value.param == f"chat_template_kwargs.{name}"


@asynchronous
async def test_the_template_gets_what_it_takes() -> None:
    """An effort that it does not know is left out, unless the client names the template's own variable."""
    async with serving(turn("fine"), tokens=with_template(TEMPLATE)) as served:
        for more, expected in (
            ({}, "hi|-|-|-|-|"),
            ({"think": False}, "hi|False|-|-|-|"),
            ({"reasoning_effort": "high"}, "hi|True|high|-|-|"),
            ({"reasoning": {"effort": "low"}, "preserve_thinking": True}, "hi|True|low|True|-|"),
            ({"reasoning_effort": "unheard"}, "hi|-|-|-|-|"),
            ({"chat_template_kwargs": {"custom": "c", "preserve_thinking": False}}, "hi|-|-|False|c|"),
            ({"chat_template_kwargs": {"reasoning_effort": "low"}, "reasoning_effort": "high"}, "hi|True|low|-|-|"),
        ):
            response = await served.post(CHAT, MINIMAL[CHAT] | more)
            assert response.status_code == 200, (more, response.text)
            assert served.prompt == expected, more
        named = MINIMAL[CHAT] | {"chat_template_kwargs": {"reasoning_effort": "unheard"}}
        response = await served.post(CHAT, named)
        assert response.status_code == 400
        assert "efforts are low and high" in response.json()["error"]["message"]


@asynchronous
async def test_boundaries_are_those_of_the_same_variables() -> None:
    """A later prompt with the same variables parts from this one after a message, and not where they come in."""
    template = (
        "{% for m in messages %}{{ custom }}[{{ m.content }}]{% endfor %}{% if add_generation_prompt %}>{% endif %}"
    )
    more = {"chat_template_kwargs": {"custom": "a long word"}, "think": True}
    async with serving(turn("fine"), tokens=with_template(template)) as served:
        talk = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "so"}, *MINIMAL[CHAT]["messages"]]
        await served.post(CHAT, {"messages": talk} | more)
        tokens: Any = served.command.messages
        ends = {tokenizer().decode(tokens[:end]) for end in served.command.boundaries}
        assert ends == {"a long word[hi]a long word[so]a long word[hi]"}


@asynchronous
async def test_thinking_that_is_not_to_be_shown() -> None:
    async with serving(turn("<think>\nHm.\n</think>\n\nSunny.")) as served:
        for more, thought in (
            ({}, "Hm."),
            ({"include_reasoning": False}, None),
            ({"reasoning": {"exclude": True}}, None),
        ):
            message = (await served.post(CHAT, MINIMAL[CHAT] | more)).json()["choices"][0]["message"]
            assert (message["content"], message.get("reasoning_content")) == ("Sunny.", thought), more


@pytest.mark.parametrize("path", ALL)
def test_schemas_in_every_spelling(path: str) -> None:
    """Of a schema and "any object", the schema holds."""
    json_object = {"type": "json_object"}
    for more, schema in (
        ({"response_format": json_object}, {"type": "object"}),
        ({"response_format": json_object | {"schema": SCHEMA}}, SCHEMA),
        ({"response_format": json_object | {"json_schema": {"schema": SCHEMA}}}, SCHEMA),
        ({"response_format": {"type": "json_schema", "schema": SCHEMA}}, SCHEMA),
        ({"json_schema": SCHEMA}, SCHEMA),
        ({"json_schema": {"name": "a", "strict": True, "schema": SCHEMA}}, SCHEMA),
        ({"response_format": json_object, "json_schema": SCHEMA}, SCHEMA),
        ({"response_format": {"type": "text"}, "json_schema": SCHEMA}, SCHEMA),
        ({"format": "json"}, {"type": "object"}),
        ({"format": SCHEMA}, SCHEMA),
        ({"format": SCHEMA, "json_schema": SCHEMA}, SCHEMA),
        ({"format": "", "response_format": {"type": "text"}}, None),
        ({}, None),
    ):
        request = parse(path, **more)
        assert request.options.json_schema == schema, more
        assert request.dropped == (), more
    with pytest.raises(ApiError, match="the same schema") as refusal:
        parse(path, json_schema=SCHEMA, format={"type": "array"})
    assert refusal.value.param == "format"


def test_a_schema_and_tools_both_reach_the_engine() -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    request = parse(CHAT, tools=[tool], json_schema=SCHEMA)
    assert (request.options.json_schema, request.callable_tools) == (SCHEMA, ("f",))


@asynchronous
async def test_an_error_that_no_retry_mends_says_so() -> None:
    """SDKs wait and try again for minutes otherwise."""
    async with serving(turn("fine"), context=60, max_body=20_000, api_key="k") as served:
        key = {"x-api-key": "k"}
        for path in (CHAT, COMPLETIONS, RESPONSES, MESSAGES):
            body = MINIMAL[path]
            long = {name: "word " * 200 if name in ("prompt", "input") else body[name] for name in body}
            long = {"messages": [{"role": "user", "content": "word " * 200}]} if "messages" in body else long
            for more, headers, status in (
                (body, {}, 401),
                (body | {"n": 2}, key, 400),
                (long, key, 400),
                (body | {"user": "x" * 30_000}, key, 413),
            ):
                response = await served.post(path, more, headers=headers)
                assert (response.status_code, response.headers["x-should-retry"]) == (status, "false"), (path, status)
            assert "x-should-retry" not in (await served.post(path, headers=key)).headers
        for method, path, status in (("POST", "/v1/nowhere", 404), ("GET", CHAT, 405)):
            response = await served.http.request(method, path, headers=key)
            assert (response.status_code, response.headers["x-should-retry"]) == (status, "false"), path
    assert queue_full(3).headers == {"retry-after": "2"}
    assert (internal_error(ValueError()).headers, ApiError("too slow", status=408).headers) == ({}, {})
