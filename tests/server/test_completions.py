"""Completions: continuing a text or token ids, without a chat template."""

from __future__ import annotations

from typing import Any

import pytest

from mlxmtp.worker.messages import TurnDelta
from tests.scripted_engine import asynchronous, stats
from tests.server.scripted import COMPLETIONS, LocalServer, serving, tokenizer, turn

MARKED = "one <think>two</think> <tool_call>three</tool_call>\n\n"

both = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])


async def complete(served: LocalServer, stream: bool, **body: Any) -> tuple[str, str, Any]:
    """Text, finish reason and usage of an answer."""
    if not stream:
        answer = (await served.post(COMPLETIONS, body)).json()
        assert answer["object"] == "text_completion"
        [choice] = answer["choices"]
        return choice["text"], choice["finish_reason"], answer["usage"]
    *chunks, end = [event.data for event in await served.stream(COMPLETIONS, body)]
    assert end == "[DONE]"
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    usage = chunks.pop()["usage"] if not chunks[-1]["choices"] else None
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    assert len(choices) == len(chunks)
    assert {choice["finish_reason"] for choice in choices[:-1]} <= {None}
    return "".join(choice["text"] for choice in choices), choices[-1]["finish_reason"], usage


@both
@asynchronous
async def test_the_text_is_not_parsed(stream: bool) -> None:
    async with serving(turn(MARKED, stats=stats(tokens=9, reused_tokens=1))) as served:
        options = {"stream_options": {"include_usage": True}}
        text, reason, usage = await complete(served, stream, prompt="Once", **options)
        assert (text, reason) == (MARKED, "stop")
        read = len(tokenizer().encode("Once"))
        assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (read, 9, read + 9)
        assert served.command.raw
        assert served.prompt == "Once"


@both
@asynchronous
async def test_token_ids_are_used_unchanged(stream: bool) -> None:
    async with serving(turn("more", "length")) as served:
        ids = tokenizer().encode("Once upon")
        for prompt in (ids, [ids]):
            assert (await complete(served, stream, prompt=prompt, max_tokens=3))[:2] == ("more", "length")
            assert served.command.messages == ids
        assert served.command.settings.max_tokens == 3
        await complete(served, stream, prompt=["Once upon"])
        assert served.command.messages == ids


@both
@asynchronous
async def test_logprobs_belong_to_their_tokens(stream: bool) -> None:
    """The sampled token may be an unlikely one. An impossible token has the API's -9999: JSON has no infinity."""
    a, b = tokenizer().encode("a", add_special_tokens=False)[0], tokenizer().encode("b", add_special_tokens=False)[0]
    weighed = [[a, -0.5, [[a, -0.5], [b, float("-inf")]]], [b, -1.5, [[a, -0.25], [b, -1.5]]]]

    def answers(command: Any) -> Any:
        events = turn("ab", piece=1)(command)
        for event, one in zip((e for e in events if isinstance(e, TurnDelta)), weighed, strict=True):
            event.logprobs.append(one)
        return events

    async with serving(answers) as served:
        body = {"prompt": "Once", "logprobs": 2}
        if stream:
            choices = [one.data["choices"][0] for one in (await served.stream(COMPLETIONS, body))[:-1]]
        else:
            choices = (await served.post(COMPLETIONS, body)).json()["choices"]
        found = [choice["logprobs"] for choice in choices if choice["logprobs"]]
        assert [token for one in found for token in one["tokens"]] == ["a", "b"]
        assert [offset for one in found for offset in one["text_offset"]] == [0, 1]
        assert [value for one in found for value in one["token_logprobs"]] == [-0.5, -1.5]
        assert [top for one in found for top in one["top_logprobs"]] == [
            {"a": -0.5, "b": -9999.0},
            {"a": -0.25, "b": -1.5},
        ]
