"""The masks of a grammar, whatever was drafted and rejected before. No model runs here: only the demo's tokenizer."""

from __future__ import annotations

import json
import random
from functools import cache
from typing import Any

import mlx.core as mx
import pytest

from mlxmtp import GenerationOptions, OptionError
from mlxmtp.checkpoints.checkpoint import DEMO
from mlxmtp.engine.grammar import Grammar, grammar_of, token_trie
from mlxmtp.engine.loading import load_tokenizer

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name"],
}
TEXTS: dict[str, tuple[dict[str, Any], str]] = {
    "any object": (
        {"type": "object"},
        'so</think>{"function": {"name": "a", "of": [1, {"b": ["c", {}]}], "d": {"e": []}}}',
    ),
    "persons": ({"type": "array", "items": PERSON}, '</think>[{"name": "Zoe", "age": 9}, {"name": "a [b] {c}"}]'),
    "a call": (PERSON, 'well</think><tool_call>{"name": "f", "arguments": {}}</tool_call>\n<tool_call>'),
}
CALL = 'start: %json {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]} "}\\n"'


@cache
def tokenizer() -> Any:
    return load_tokenizer(DEMO, [2])


@cache
def trie() -> Any:
    return token_trie(tokenizer())


def ids(text: str) -> list[int]:
    return list(tokenizer().encode(text, add_special_tokens=False))


def start(options: GenerationOptions, prompt: str = "hello") -> Grammar:
    return grammar_of(options, trie(), tokenizer(), ids(prompt))


def allowed(row: mx.array) -> list[int]:
    return [token for token, may in enumerate(row.tolist()) if may]  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", TEXTS)
def test_rejected_drafts_leave_nothing(kind: str) -> None:
    """The masks are those of a grammar that has seen the accepted tokens alone."""
    schema, text = TEXTS[kind]
    options = GenerationOptions(json_schema=schema, tool_calls=kind == "a call")
    others = list({*ids('{"name": ["a", {"b": [{"c":1, 2}]}]} [] {} "",'), *ids("</think><tool_call></tool_call>")})
    for seed in range(3):
        rng = random.Random(seed)
        drafted, fresh = start(options, "<think>\n"), start(options, "<think>\n")
        for step, token in enumerate(ids(text)):
            now = fresh.masks([])
            assert mx.array_equal(drafted.masks([]), now), f"seed {seed}, step {step}: before {token}"
            likely = [other for other in others if now[0, other]]
            for _ in range(3):
                first = rng.choice(likely or others)
                rows = drafted.masks([first, *rng.sample(others, 2)])
                assert mx.array_equal(rows[:1], now), f"seed {seed}, step {step}: asked again"
            drafted.advance([token])
            fresh.advance([token])


def test_a_call_may_come_instead_of_the_json() -> None:
    options = GenerationOptions(json_schema=PERSON, tool_calls=True)
    (call_start,), (call_end,) = ids("<tool_call>"), ids("</tool_call>")
    ends = tokenizer().eos_token_ids
    answer = start(options)
    assert call_start in allowed(answer.masks([])[0])
    answer.advance(ids('{"name"'))
    assert call_start not in allowed(answer.masks([])[0]), "not within the JSON"
    call = start(options)
    call.advance([call_start, *ids('{"name": "f"')])
    assert not ends & set(allowed(call.masks([])[0])), "a call that has begun is finished"
    assert ids("anything")[0] in allowed(call.masks([])[0])
    call.advance([call_end])
    assert set(allowed(call.masks([])[0])) == {call_start, *ends, *ids("\n"), *ids("\n\n")[:1]}, (
        "another call, or the end"
    )


def test_a_schema_holds_inside_open_thinking() -> None:
    thinking = start(GenerationOptions(json_schema=PERSON, tool_calls=True), "<think>\n")
    free = allowed(thinking.masks([])[0])
    assert ids("<tool_call>")[0] not in free
    assert not tokenizer().eos_token_ids & set(free)
    assert ids("</think>")[0] in free


def test_a_forced_call_ends_with_its_marker() -> None:
    (call_end,), ends = ids("</tool_call>"), tokenizer().eos_token_ids
    call = start(GenerationOptions(call_grammar=CALL))
    text = '{"n": 12}}\n'
    for token in ids(text):
        now = allowed(call.masks([])[0])
        assert token in now
        assert call_end not in now
        assert not ends & set(now)
        call.advance([token])
    assert allowed(call.masks([])[0]) == [call_end]
    call.advance([call_end])
    assert set(allowed(call.masks([])[0])) == set(ends)
    assert json.loads(text.removesuffix("}\n")) == {"n": 12}


def test_a_call_grammar_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(OptionError, match="call_grammar cannot be followed"):
        start(GenerationOptions(call_grammar="start: ("))


def test_calls_without_markers_of_their_own_are_refused_beside_a_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer(), "_tool_call_start_tokens", (5, 6))
    with pytest.raises(OptionError, match="expected a schema without tools"):
        start(GenerationOptions(json_schema=PERSON, tool_calls=True))
