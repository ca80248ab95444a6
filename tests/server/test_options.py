"""The `Request` that is parsed from a body: generation options, tools, tool choice, dropped fields."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest

from mlxmtp.engine.request import GenerationOptions
from mlxmtp.server.body import JsonObject
from tests.server.scripted import ALL, CHAT, COMPLETIONS, MESSAGES, MINIMAL, RESPONSES, adapter, parse

PERSON = {"type": "object", "properties": {"name": {"type": "string"}}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
FLAT = {"type": "function", "name": "f", "parameters": {"type": "object"}}
CLAUDE = {"name": "f", "input_schema": {"type": "object"}}

each = pytest.mark.parametrize("path", ALL)


@each
def test_sampling_fields(path: str) -> None:
    wanted = {
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.05,
        "seed": 7,
        "frequency_penalty": 0.5,
        "presence_penalty": -0.5,
        "repetition_penalty": 1.1,
    }
    found = parse(path, **wanted, logit_bias={"12": -100, "7": 1.5}).options
    assert {name: asdict(found)[name] for name in wanted} == wanted
    assert found.logit_bias == ((12, -100.0), (7, 1.5))


@each
def test_defaults_of_the_server(path: str) -> None:
    defaults = GenerationOptions(
        temperature=0.6,
        top_p=0.95,
        top_k=20,
        min_p=0.1,
        seed=3,
        frequency_penalty=0.1,
        presence_penalty=0.2,
        repetition_penalty=1.2,
        depth=2,
        max_tokens=None,
    )
    body = JsonObject(MINIMAL[path] | dict.fromkeys(["temperature", "top_p", "seed"]))
    found = adapter(path).parse(body, defaults).options
    limit = {COMPLETIONS: 16, MESSAGES: 100}.get(path)
    assert found == GenerationOptions(
        temperature=0.6,
        top_p=0.95,
        top_k=20,
        min_p=0.1,
        seed=3,
        frequency_penalty=0.1,
        presence_penalty=0.2,
        repetition_penalty=1.2,
        depth=2,
        max_tokens=limit,
    )


@each
def test_names_of_the_limit(path: str) -> None:
    for name in ("max_tokens", "max_completion_tokens", "max_output_tokens", "n_predict"):
        assert parse(path, **{name: 33}).options.max_tokens == 33
        assert parse(path, **{name: 33.0}).options.max_tokens == 33
        assert parse(path, **{"max_tokens": -1} | {name: -1}).options.max_tokens is None  # no limit, as in llama.cpp
    assert parse(path, max_tokens=50, n_predict=40, max_output_tokens=60).options.max_tokens == 40


@each
def test_names_of_other_servers(path: str) -> None:
    assert parse(path, repeat_penalty=1.3).options.repetition_penalty == 1.3
    assert parse(path, repeat_penalty=1.3, repetition_penalty=1.2).options.repetition_penalty == 1.2
    assert parse(path, stop="END").options.stop == parse(path, stop_sequences=["END"]).options.stop == ("END",)


def test_neutral_values() -> None:
    assert parse(CHAT, temperature=0, top_p=0, top_k=-1).options == GenerationOptions(
        temperature=0.0, top_p=1e-9, top_k=0, max_tokens=None
    )
    assert parse(CHAT, seed=-1) == parse(CHAT)  # no seed, as llama.cpp's clients write it
    assert parse(CHAT, seed=-2).options.seed == 2**64 - 2
    for name in ("seed", "top_k", "max_tokens"):  # some clients write each number with a point
        assert parse(CHAT, **{name: 42.0}) == parse(CHAT, **{name: 42}), name
    assert parse(CHAT, seed=-1.0) == parse(CHAT)
    assert parse(CHAT, logprobs=True, top_logprobs=3.0).options.logprobs == 3
    assert [type(id) for id in parse(COMPLETIONS, prompt=[1.0, 2]).messages] == [int, int]
    assert parse(CHAT, n=1, mirostat=0, modalities=["text"], typical_p=1.0, tfs_z=1) == parse(CHAT)
    nothing: dict[str, Any] = {"grammar": "", "stop_token_ids": [], "min_tokens": 0, "ignore_eos": False, "top_a": 0}
    nothing |= {"xtc_probability": 0.0, "dry_multiplier": 0, "dynatemp_range": 0.0, "best_of": 1}
    nothing |= {"add_generation_prompt": True, "guided_json": None}
    assert all(parse(CHAT, **nothing, top_n_sigma=value) == parse(CHAT) for value in (0, -1, -1.0))
    assert parse(COMPLETIONS, tools=[], tool_choice="none") == parse(COMPLETIONS)
    assert parse(MESSAGES, mcp_servers=[], response_format={"type": "text"}) == parse(MESSAGES)
    assert parse(COMPLETIONS, echo=False, best_of=1, suffix="").options.max_tokens == 16


@pytest.mark.parametrize(
    ("path", "more", "schema"),
    [
        (CHAT, {"response_format": {"type": "json_schema", "json_schema": {"name": "p", "schema": PERSON}}}, PERSON),
        (CHAT, {"response_format": {"type": "json_object"}}, {"type": "object"}),
        (CHAT, {"response_format": {"type": "text"}}, None),
        (COMPLETIONS, {"response_format": {"type": "json_object"}}, {"type": "object"}),
        (RESPONSES, {"text": {"format": {"type": "json_schema", "name": "p", "schema": PERSON}}}, PERSON),
        (RESPONSES, {"text": {"verbosity": "low"}}, None),
        (MESSAGES, {"output_config": {"format": {"type": "json_schema", "schema": PERSON}}}, PERSON),
        (MESSAGES, {"output_format": {"type": "json_schema", "schema": PERSON}}, PERSON),
        (MESSAGES, {"output_config": {"effort": "high"}}, None),
    ],
)
def test_schemas_of_answers(path: str, more: dict[str, Any], schema: Any) -> None:
    assert parse(path, **more).options.json_schema == schema


@pytest.mark.parametrize(
    ("path", "more", "logprobs"),
    [
        (CHAT, {"logprobs": True}, 0),
        (CHAT, {"logprobs": True, "top_logprobs": 20}, 20),
        (CHAT, {"logprobs": False, "top_logprobs": 0}, None),
        (COMPLETIONS, {"logprobs": 5}, 5),
        (RESPONSES, {"top_logprobs": 0}, None),
    ],
)
def test_logprobs(path: str, more: dict[str, Any], logprobs: Any) -> None:
    assert parse(path, **more).options.logprobs == logprobs


@pytest.mark.parametrize(
    ("path", "more", "thinking"),
    [
        (CHAT, {}, None),
        (CHAT, {"enable_thinking": False}, False),
        (CHAT, {"chat_template_kwargs": {"enable_thinking": True}}, True),
        (CHAT, {"chat_template_kwargs": {"thinking": False}}, False),
        (CHAT, {"reasoning_effort": "none"}, False),
        (CHAT, {"reasoning_effort": "high"}, True),
        (RESPONSES, {"reasoning": {"effort": "minimal"}}, False),
        (RESPONSES, {"reasoning": {"effort": "medium", "summary": "auto"}}, True),
        (MESSAGES, {"thinking": {"type": "enabled", "budget_tokens": 4000}}, True),
        (MESSAGES, {"thinking": {"type": "disabled"}}, False),
        (MESSAGES, {"thinking": {"type": "adaptive"}}, None),
    ],
)
def test_thinking(path: str, more: dict[str, Any], thinking: Any) -> None:
    assert parse(path, **more).options.thinking is thinking


@pytest.mark.parametrize(
    ("path", "tool", "choice", "expected"),
    [
        (CHAT, TOOL, None, (1, "auto")),
        (CHAT, TOOL, "auto", (1, "auto")),
        (CHAT, TOOL, "none", (0, "auto")),
        (CHAT, TOOL, "required", (1, "f")),
        (CHAT, TOOL, {"type": "function", "function": {"name": "f"}}, (1, "f")),
        (RESPONSES, FLAT, {"type": "function", "name": "f"}, (1, "f")),
        (RESPONSES, FLAT, {"type": "allowed_tools", "mode": "auto", "tools": [{"name": "g"}]}, (0, "auto")),
        (RESPONSES, FLAT, {"type": "allowed_tools", "mode": "required", "tools": [{"name": "f"}]}, (1, "f")),
        (MESSAGES, CLAUDE, {"type": "auto"}, (1, "auto")),
        (MESSAGES, CLAUDE, {"type": "any"}, (1, "f")),
        (MESSAGES, CLAUDE, {"type": "none"}, (0, "auto")),
        (MESSAGES, CLAUDE, {"type": "tool", "name": "f"}, (1, "f")),
    ],
)
def test_choices_among_tools(path: str, tool: Any, choice: Any, expected: tuple[int, str]) -> None:
    """All tools are in the prompt, whichever may be called, so that it matches the prefix cache."""
    found = parse(path, tools=[tool], **({"tool_choice": choice} if choice else {}))
    assert (len(found.callable_tools), found.tool_choice) == expected
    assert found.tools == parse(path, tools=[tool]).tools != []


def test_choices_among_two_tools() -> None:
    names = [{"type": "function", "name": name} for name in "fg"]
    for choice, expected in (
        ("auto", (("f", "g"), "auto")),
        ("none", ((), "auto")),
        ("required", (("f", "g"), "required")),
        ({"type": "function", "name": "g"}, (("g",), "g")),
        ({"type": "allowed_tools", "mode": "auto", "tools": names[1:]}, (("g",), "auto")),
        ({"type": "allowed_tools", "mode": "required", "tools": names[1:]}, (("g",), "g")),
    ):
        found = parse(RESPONSES, tools=[*names, *names], tool_choice=choice)
        assert (found.callable_tools, found.tool_choice) == expected


def test_hosted_tools_are_dropped_and_logged() -> None:
    space = {"type": "namespace", "name": "files", "tools": [FLAT, {"type": "code_interpreter"}]}
    found = parse(RESPONSES, tools=[{"type": "web_search"}, space])
    assert [tool["function"]["name"] for tool in found.tools] == ["f"]
    assert found.dropped == ("tool web_search", "tool code_interpreter")
    hosted = parse(MESSAGES, tools=[{"type": "bash_20250124", "name": "bash"}, CLAUDE])
    assert ([tool["function"]["name"] for tool in hosted.tools], hosted.dropped) == (["f"], ("tool bash",))


@each
def test_unknown_fields_are_logged(path: str) -> None:
    """Fields that cannot change the text are not logged, and long names are cut."""
    harmless: dict[str, Any] = {"model": "gpt-9", "store": True, "metadata": {"a": "1"}, "prompt_cache_key": "k"}
    plain = parse(path, metadata={"a": "1"})  # which Responses repeats
    assert parse(path, **harmless, wished=None) == plain
    assert parse(path, **harmless, wished={}, grammer="[ab]") == replace(plain, dropped=("wished", "grammer"))
    assert sum(map(len, parse(path, **{f"{i}" * 1000: 1 for i in range(1000)}).dropped)) < 500


def test_a_begun_answer_is_logged() -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "{"}]
    assert parse(MESSAGES, messages=messages).dropped == ("continuation of the last message",)
    assert parse(MESSAGES, messages=messages[:1]).dropped == ()


def test_ignored_settings_of_sdks_are_logged() -> None:
    strict = {"type": "function", "function": TOOL["function"] | {"strict": True}}
    assert parse(CHAT, tools=[strict, TOOL]).dropped == ("strict of tool f",)
    assert parse(RESPONSES, tools=[FLAT | {"strict": True}]).dropped == ("strict of tool f",)
    assert parse(MESSAGES, tools=[CLAUDE | {"strict": True}]).dropped == ("strict of tool f",)
    assert parse(RESPONSES, truncation="auto").dropped == ("truncation auto",)
    assert parse(RESPONSES, truncation="disabled", include=["reasoning.encrypted_content"]).dropped == ()
