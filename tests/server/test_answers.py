"""Generated text, reasoning and tool calls in the answers of each protocol, whole and streamed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from mlxmtp.worker.messages import Generate
from tests.scripted_engine import asynchronous, stats
from tests.server.protocols import PROTOCOLS, ParsedAnswer, Protocol, protocol_id
from tests.server.scripted import CHAT, LocalServer, parse_events, serving, tokenizer, turn

WEATHER = (
    "get_weather",
    "the weather of a city",
    {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "detailed": {"type": "boolean"}},
    },
)
TIME = ("get_time", "the time", {"type": "object", "properties": {}})
ROME = (
    '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome", "days": "3", "detailed": "true"}}\n</tool_call>'
)
NOW = '<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>'
CALL = ("get_weather", {"city": "Rome", "days": 3, "detailed": True})

each = pytest.mark.parametrize("protocol", PROTOCOLS, ids=protocol_id)
both = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
pieces = pytest.mark.parametrize("piece", [1, 7, 0], ids=["by letters", "in pieces", "at once"])


async def ask(
    protocol: Protocol, stream: bool, answers: Callable[..., Any], tools: Any = (WEATHER, TIME), **more: Any
) -> ParsedAnswer:
    """The parsed answer to a question, from scripted events of the engine."""
    async with serving(answers) as served:
        return await ask_server(served, protocol, protocol.ask("How is it?", list(tools), **more), stream)


async def ask_server(served: LocalServer, protocol: Protocol, body: dict[str, Any], stream: bool) -> ParsedAnswer:
    if stream:
        return protocol.streamed(await served.stream(protocol.path, body))
    response = await served.post(protocol.path, body)
    assert response.status_code == 200, response.text
    return protocol.whole(response.json())


@each
@both
@pieces
@asynchronous
async def test_text_is_unchanged(protocol: Protocol, stream: bool, piece: int) -> None:
    answer = await ask(protocol, stream, turn("\tGrüße, 東京 👋🏽!\n\n* a\n* b\n", piece=piece), tools=())
    assert (answer.text, answer.reasoning, answer.calls, answer.end) == (
        "\tGrüße, 東京 👋🏽!\n\n* a\n* b\n",
        "",
        [],
        "stop",
    )


@each
@both
@pieces
@asynchronous
async def test_reasoning_is_separate_from_the_answer(protocol: Protocol, stream: bool, piece: int) -> None:
    answer = await ask(protocol, stream, turn("<think>\nLet me\n\nsee.\n</think>\n\nSunny.", piece=piece))
    assert (answer.reasoning, answer.text, answer.end) == ("Let me\n\nsee.", "Sunny.", "stop")


@each
@both
@pieces
@asynchronous
async def test_a_call_has_arguments_of_the_types_in_its_schema(protocol: Protocol, stream: bool, piece: int) -> None:
    answer = await ask(protocol, stream, turn(f"<think>Hm.</think>\nI look.\n{ROME}", piece=piece))
    assert (answer.reasoning, answer.text, answer.calls, answer.end) == ("Hm.", "I look.", [CALL], "tool_calls")


@each
@both
@pieces
@asynchronous
async def test_two_calls_at_once(protocol: Protocol, stream: bool, piece: int) -> None:
    answer = await ask(protocol, stream, turn(f"{ROME}\n{NOW}\n", piece=piece))
    assert (answer.text, answer.calls, answer.end) == ("", [CALL, ("get_time", {})], "tool_calls")
    assert len(set(answer.call_ids)) == 2


@each
@both
@pieces
@asynchronous
async def test_text_around_calls_keeps_its_newlines(protocol: Protocol, stream: bool, piece: int) -> None:
    answer = await ask(protocol, stream, turn(f"First.\n{ROME}\nThen.\n{NOW}\nDone.\n", piece=piece))
    assert (answer.text, len(answer.calls)) == ("First.\n\nThen.\n\nDone.", 2)


@each
@both
@pieces
@asynchronous
async def test_one_call_without_parallel_tool_calls(protocol: Protocol, stream: bool, piece: int) -> None:
    alone: dict[str, Any] = {"parallel_tool_calls": False}
    if protocol.stop == "stop_sequences":
        alone = {"tool_choice": {"type": "auto", "disable_parallel_tool_use": True}}
    async with serving(turn(f"I look.\n{ROME}\n{NOW}\nAnd then?", piece=piece)) as served:
        body = protocol.ask("How is it?", [WEATHER, TIME], **alone)
        answer = await ask_server(served, protocol, body, stream)
        assert (answer.text, answer.calls, answer.end) == ("I look.", [CALL], "tool_calls")
        await served.assert_works()


@each
@both
@asynchronous
async def test_a_call_that_the_limit_cuts_is_left_out(protocol: Protocol, stream: bool) -> None:
    for cut in (ROME[:60], ROME.removesuffix("\n</tool_call>")):
        answer = await ask(protocol, stream, turn(f"I look.\n{cut}", "length"), **{protocol.limit: 20})
        assert (answer.text, answer.calls, answer.end) == ("I look.", [], "length"), cut


@each
@both
@asynchronous
async def test_a_call_that_was_complete_before_the_limit_is_a_call(protocol: Protocol, stream: bool) -> None:
    for after in ("", "\n", "\nAnd"):
        answer = await ask(protocol, stream, turn(f"{ROME}{after}", "length"))
        assert (answer.text, answer.calls, answer.end) == (after.strip(), [CALL], "length"), after


@each
@both
@asynchronous
async def test_a_stop_string_after_a_call(protocol: Protocol, stream: bool) -> None:
    for after in ("", "\nSo "):
        answer = await ask(protocol, stream, turn(f"{ROME}{after}", stopped_by="END"))
        assert (answer.text, answer.calls, answer.end) == (after.strip("\n"), [CALL], "tool_calls"), after


@each
@both
@pytest.mark.parametrize(
    "malformed",
    [
        '{"name": "get_weather", "arguments": {"city": ',
        '{"name": 7, "arguments": {}}',
        '{"name": "get_weather"}',
        '{"name": "get_weather", "arguments": [1]}',
        '{"name": "get_weather", "arguments": null}',
        '{"name": "get_weather", "arguments": {"days": NaN}}',
        "",
        "[]",
        "null",
        "just words",
    ],
)
@asynchronous
async def test_a_malformed_call_is_text(protocol: Protocol, stream: bool, malformed: str) -> None:
    written = f"<tool_call>\n{malformed}\n</tool_call>"
    answer = await ask(protocol, stream, turn(f"So:\n{written}"))
    assert (answer.text, answer.calls, answer.end) == (f"So:\n{written}", [], "stop")


@each
@both
@asynchronous
async def test_call_tags_are_text_without_tools(protocol: Protocol, stream: bool) -> None:
    answer = await ask(protocol, stream, turn(f"Write {NOW} there."), tools=())
    assert (answer.text, answer.calls, answer.end) == (f"Write {NOW} there.", [], "stop")


@each
@both
@asynchronous
async def test_half_a_surrogate_pair_in_a_call_is_replaced(protocol: Protocol, stream: bool) -> None:
    call = '<tool_call>{"name": "get_weather", "arguments": {"city": "Ro\\ud83dme"}}</tool_call>'
    answer = await ask(protocol, stream, turn(call))
    assert answer.calls == [("get_weather", {"city": "Ro?me"})]


@each
@both
@asynchronous
async def test_an_empty_answer(protocol: Protocol, stream: bool) -> None:
    answer = await ask(protocol, stream, turn(""))
    assert (answer.text, answer.reasoning, answer.calls, answer.end) == ("", "", [], "stop")


@each
@both
@asynchronous
async def test_reasoning_that_the_limit_cuts(protocol: Protocol, stream: bool) -> None:
    answer = await ask(protocol, stream, turn("<think>Let me", "length"))
    assert (answer.reasoning, answer.text, answer.end) == ("Let me", "", "length")


@each
@both
@asynchronous
async def test_the_limit_and_the_stop_strings_reach_the_engine(protocol: Protocol, stream: bool) -> None:
    stops = {protocol.stop: ["END", "\n\n"]} if protocol.stop else {}
    async with serving(turn("Some", "stop", stopped_by="END" if stops else None)) as served:
        answer = await ask_server(served, protocol, protocol.ask("hi", **{protocol.limit: 7}, **stops), stream)
        assert served.command.settings.max_tokens == 7
        assert served.command.settings.stop == (("END", "\n\n") if stops else ())
    assert (answer.text, answer.end) == ("Some", "stop_sequence" if protocol.stop == "stop_sequences" else "stop")


@each
@both
@asynchronous
async def test_usage_counts_the_prompt_the_cache_and_the_answer(protocol: Protocol, stream: bool) -> None:
    more = {"stream_options": {"include_usage": True}} if "chat" in protocol.path and stream else {}
    for reused in (4, 10_000):  # with the ids that the model wrote, a prompt can have more tokens than as text
        async with serving(turn("Some words", stats=stats(tokens=12, reused_tokens=reused))) as served:
            answer = await ask_server(served, protocol, protocol.ask("hi", **more), stream)
            count = len(served.command.messages)
            assert answer.usage == (count, min(reused, count), 12)


@both
@asynchronous
async def test_timings_have_the_shape_of_llama_cpp(stream: bool) -> None:
    told = stats(prompt_tokens=100, reused_tokens=40, tokens=12, drafted=15, accepted=7, prefill_tps=120.0)
    async with serving(turn("Some words", stats=told)) as served:
        for protocol in PROTOCOLS:
            body = protocol.ask("hi") | {"stream": stream}
            text = (await served.post(protocol.path, body)).text
            answers = [one.data for one in parse_events(text)] if stream else [json.loads(text)]
            answers = [one.get("response", one) for one in answers if isinstance(one, dict)]
            [timings] = [one["timings"] for one in answers if "timings" in one]
            assert (timings["prompt_n"], timings["cache_n"], timings["prompt_ms"]) == (60, 40, 500.0)
            assert (timings["predicted_n"], timings["draft_n"], timings["draft_n_accepted"]) == (12, 15, 7)


@both
@asynchronous
async def test_logprobs_of_chat_belong_to_their_tokens(stream: bool) -> None:
    """The sampled token may be an unlikely one. An impossible token has the API's -9999: JSON has no infinity."""
    a, b = (tokenizer().encode(letter, add_special_tokens=False)[0] for letter in "ab")
    weighed = [[a, -0.5, [[a, -0.5], [b, float("-inf")]]], [b, -1.5, [[a, -0.25]]]]

    def answers(command: Generate) -> list[Any]:
        events = turn("ab", piece=1)(command)
        return [replace(event, logprobs=[one]) for event, one in zip(events, weighed, strict=False)] + events[2:]

    async with serving(answers) as served:
        body = PROTOCOLS[0].ask("hi", logprobs=True, top_logprobs=2)
        if stream:
            choices = [one.data["choices"][0] for one in (await served.stream(CHAT, body))[:-1]]
        else:
            choices = (await served.post(CHAT, body)).json()["choices"]
    found = [one for choice in choices if choice["logprobs"] for one in choice["logprobs"]["content"]]
    assert [(one["token"], one["logprob"], one["bytes"]) for one in found] == [("a", -0.5, [97]), ("b", -1.5, [98])]
    assert [(one["token"], one["logprob"]) for one in found[0]["top_logprobs"]] == [("a", -0.5), ("b", -9999.0)]


@asynchronous
async def test_a_chat_stream_has_usage_only_on_request() -> None:
    async with serving(turn("Some words")) as served:
        assert PROTOCOLS[0].streamed(await served.stream(PROTOCOLS[0].path)).usage is None
