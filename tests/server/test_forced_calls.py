"""A forced call is held by a grammar, in the way in which the chat template writes calls."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from mlxmtp import GenerationOptions, load
from mlxmtp.checkpoints.checkpoint import DEMO
from mlxmtp.engine.grammar import grammar_of, token_trie
from mlxmtp.engine.loading import load_tokenizer
from mlxmtp.engine.output import parse_tool_calls
from mlxmtp.server.forced_call import forced_call
from tests.scripted_engine import asynchronous
from tests.server.protocols import PROTOCOLS
from tests.server.scripted import serving, turn

PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": name, "description": "", "parameters": PARAMETERS}}
    for name in ("weather", "time")
]
EACH_ARGUMENT = """
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\n' + message.content }}
    {%- for call in message.tool_calls or [] %}
        {{- '<tool_call>\n<function=' + call.function.name + '>\n' }}
        {%- for name, value in call.function.arguments | items %}
            {{- '<parameter=' + name + '>\n' + (value if value is string else value | tojson) + '\n</parameter>\n' }}
        {%- endfor %}
        {{- '</function>\n</tool_call>' }}
    {%- endfor %}
    {{- '<|im_end|>\n' }}
{%- endfor %}
"""
JSON_REST = {
    ' {"city": "Rome"}}\n': True,
    ' {"city": "Ro\\"me", "days": 3}}\n': True,
    ' {"days": 3}}\n': False,
    ' {"city": "Rome", "days": "3"}}\n': False,
    ' {"city": "Rome", "more": 1}}\n': False,
    ' {"city": "Rome"}\n': False,
}
ARGUMENTS_REST = {
    "\n<parameter=city>\nRome\n</parameter>\n</function>\n": True,
    "\n<parameter=city>\nRo\n<b>me\n</parameter>\n<parameter=days>\n3\n</parameter>\n</function>\n": True,
    "\n<parameter=days>\n3\n</parameter>\n</function>\n": False,
    "\n<parameter=city>\nRome\n</parameter>\n<parameter=days>\nthree\n</parameter>\n</function>\n": False,
    "\n</function>\n": False,
}


@cache
def tokenizer(template: str | None = None) -> Any:
    made = load_tokenizer(DEMO, [2])
    if template:
        made._tokenizer.chat_template = template
    return made


def accepts(template: str | None, grammar: str, text: str) -> bool:
    """Whether a call may go on with this text, and end after it."""
    tokens = tokenizer(template)
    held = grammar_of(GenerationOptions(call_grammar=grammar), token_trie(tokens), tokens, [1])
    for token in tokens.encode(text + "</tool_call>", add_special_tokens=False):
        if not held.masks([])[0, token]:
            return False
        held.advance([token])
    return True


@pytest.mark.parametrize(
    ("template", "rests", "head"),
    [(None, JSON_REST, '{{"name": "{}", "arguments":'), (EACH_ARGUMENT, ARGUMENTS_REST, "<function={}>")],
    ids=["JSON", "each argument"],
)
def test_the_rest_of_a_call(template: str | None, rests: dict[str, bool], head: str) -> None:
    named = forced_call(tokenizer(template), TOOLS, "weather")
    required = forced_call(tokenizer(template), TOOLS, "required")
    assert named.opening == "<tool_call>\n" + head.format("weather")
    assert required.opening == "<tool_call>\n"
    assert named.grammar
    assert required.grammar
    for rest, right in rests.items():
        assert accepts(template, named.grammar, rest) is right, rest
        for name, known in (("weather", True), ("time", True), ("other", False)):
            whole = head.format(name) + rest
            assert accepts(template, required.grammar, whole) is (right and known), whole


LOOSE = {
    "properties": {
        "unit": {"$ref": "#/$defs/unit"},
        "mode": {"enum": ["a b", "c"]},
        "few": {"anyOf": [{"$ref": "#/$defs/count"}, {"type": "null"}]},
        "more": {"type": ["array", "null"], "items": {"$ref": "#/$defs/count"}},
        "any": {"type": ["string", "integer"]},
    },
    "$defs": {"unit": {"type": "string", "enum": ["C", "F"]}, "count": {"type": "integer"}},
}
LOOSE_VALUES = {
    "unit": {"C": True, "F": True, "K": False, '"C"': False},
    "mode": {"a b": True, "c": True, "a": False, "c d": False},
    "few": {"5": True, "null": True, "five": False, '"5"': False},
    "more": {"[1, 2]": True, "null": True, '["a"]': False, "1": False},
    "any": {"5": True, "five": True},
}


def test_what_schemas_leave_out() -> None:
    """The type of the whole is an object. Values follow definitions, choices of types and lists of values."""
    tools = [{"type": "function", "function": {"name": "f", "parameters": LOOSE}}]
    held = forced_call(tokenizer(EACH_ARGUMENT), tools, "f").grammar
    assert held
    for name, values in LOOSE_VALUES.items():
        for value, right in values.items():
            rest = f"\n<parameter={name}>\n{value}\n</parameter>\n</function>\n"
            assert accepts(EACH_ARGUMENT, held, rest) is right, (name, value)
    held = forced_call(tokenizer(), tools, "f").grammar
    assert held
    for value, right in (('{"few": 5}', True), ('{"few": "5"}', False), ("[]", False), ('"few"', False)):
        assert accepts(None, held, f" {value}}}\n") is right, value


def test_arguments_without_names_are_free() -> None:
    for parameters, free in (
        ({"type": "object"}, True),
        ({"type": "object", "properties": {}}, True),
        ({"type": "object", "properties": {}, "additionalProperties": False}, False),
    ):
        tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
        assert (forced_call(tokenizer(EACH_ARGUMENT), tools, "f").grammar is None) is free, parameters


def test_a_template_that_writes_calls_in_another_way_has_no_grammar() -> None:
    shouting = EACH_ARGUMENT.replace("+ name +", "+ name + loop.index | string +")
    assert forced_call(tokenizer(shouting), TOOLS, "weather").grammar is None
    unknown = [{"type": "function", "function": {"name": "f", "parameters": {"type": "objekt"}}}]
    assert forced_call(tokenizer(), unknown, "f").grammar is None


def test_a_model_that_writes_anything_writes_the_call() -> None:
    engine = load()
    call = forced_call(engine.tokenizer, TOOLS, "weather")
    prompt = engine.tokenizer.encode("The weather?\n" + call.opening)
    options = GenerationOptions(max_tokens=60, temperature=1.5, seed=7, depth=2, call_grammar=call.grammar)
    result = engine.generate(prompt, options, opening=call.opening)
    assert result.finish_reason == "stop"
    written = (call.opening + result.text).removeprefix("<tool_call>").removesuffix("</tool_call>")
    (parsed,) = parse_tool_calls(engine.tokenizer, written, TOOLS) or []
    assert parsed["name"] == "weather"
    assert isinstance(parsed["arguments"]["city"], str)


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: protocol.path)
@asynchronous
async def test_a_request_brings_its_grammar(protocol: Any) -> None:
    weather = ("weather", "", PARAMETERS)
    async with serving(turn("Hi.")) as served:
        await served.post(protocol.path, protocol.ask("Hello?", [weather]))
        assert served.command.settings.call_grammar is None
        choice = {"type": "any"} if protocol.path == "/v1/messages" else "required"
        await served.post(protocol.path, protocol.ask("Hello?", [weather], tool_choice=choice))
        assert '"city"' in (served.command.settings.call_grammar or "")


@asynchronous
async def test_a_schema_beside_tools_lets_calls_come() -> None:
    (chat,) = [protocol for protocol in PROTOCOLS if protocol.path == "/v1/chat/completions"]
    wanted = {"type": "json_schema", "json_schema": {"name": "p", "schema": PARAMETERS}}
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
    async with serving(turn(call)) as served:
        body = chat.ask("Hello?", [("weather", "", PARAMETERS)], response_format=wanted)
        answer = chat.whole((await served.post(chat.path, body)).json())
        assert answer.calls == [("weather", {"city": "Rome"})]
        settings = served.command.settings
        assert (settings.tool_calls, settings.json_schema) == (True, PARAMETERS)
        await served.post(chat.path, body | {"tool_choice": "required"})
        settings = served.command.settings
        assert settings.call_grammar
        assert settings.json_schema is None, "the call that is forced, not the JSON"
        await served.post(chat.path, body | {"tool_choice": "none"})
        assert not served.command.settings.tool_calls
