"""JSON schemas with speculation on: always JSON of the schema, and the same at any depth."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from llguidance import LLMatcher

from mlxmtp import Engine, GenerationOptions, OptionError, Result, load
from mlxmtp.decoding.draft import DraftRequest, MTPChain
from mlxmtp.decoding.sampler import Draft
from mlxmtp.engine.grammar import Grammar, Markers, grammar_of, token_trie
from tests.engine.kinds import TRAINED
from tests.grids import cases
from tests.scripted import one_hot

ORDER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "size": {"enum": ["small", "large", 3, None]},
        "count": {"type": "integer", "minimum": 1, "maximum": 99},
        "extras": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 4},
    },
    "required": ["name", "size", "count", "extras"],
    "additionalProperties": False,
}
SIZE = ORDER | {"properties": {"size": ORDER["properties"]["size"]}, "required": ["size"]}
PROMPTS = ("I'd like a large latte", "Why is the sky blue?")
THINK_END = 4


@pytest.fixture(scope="module")
def demo() -> Engine:
    """For tokens of several characters, and the marker that ends the thinking."""
    return load()


@pytest.fixture(scope="module")
def engine() -> Engine:
    """A small model whose tokens are bytes."""
    return load(TRAINED / "glm4_moe")


def assert_order(text: str) -> None:
    order = json.loads(text)
    assert list(order) == ["name", "size", "count", "extras"]
    assert isinstance(order["name"], str)
    assert len(order["name"]) <= 12
    assert order["size"] in ("small", "large", 3, None)
    assert type(order["count"]) is int
    assert 1 <= order["count"] <= 99
    assert 1 <= len(order["extras"]) <= 4
    assert all(type(extra) is bool for extra in order["extras"])


# -- whole turns ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", cases(PROMPTS, default=PROMPTS[:1]))
def test_greedy_answers_are_of_the_schema_and_the_same_at_any_depth(engine: Engine, prompt: str) -> None:
    plain = engine.generate(prompt, GenerationOptions(max_tokens=300, depth=0, json_schema=ORDER))
    assert_order(plain.text)
    assert plain.finish_reason == "stop"
    assert plain.tokens[-1] in engine.tokenizer.eos_token_ids
    assert plain.stats.evaluations == plain.stats.rounds
    for depth in (1, 3):
        run = engine.generate(prompt, GenerationOptions(max_tokens=300, depth=depth, json_schema=ORDER))
        assert run.tokens == plain.tokens, f"depth {depth}"
        assert 0 < run.stats.accepted < run.stats.drafted
        assert run.stats.evaluations == 2 * run.stats.rounds + 2 * run.stats.timed_rounds


@pytest.mark.parametrize("verify", cases(["token", "block", "seeded"], default=("block",)))
def test_sampled_answers_are_of_the_schema(engine: Engine, verify: Any) -> None:
    accepted, texts = 0, set()
    for seed in range(2):
        run = engine.generate(
            PROMPTS[0],
            GenerationOptions(temperature=1.0, seed=seed, max_tokens=400, depth=3, verify=verify, json_schema=ORDER),
        )
        assert run.finish_reason == "stop"
        assert_order(run.text)
        accepted += run.stats.accepted
        texts.add(run.text)
        if verify == "seeded" and seed == 0:
            plain = engine.generate(
                PROMPTS[0], GenerationOptions(temperature=1.0, seed=seed, max_tokens=400, depth=0, json_schema=ORDER)
            )
            assert run.tokens == plain.tokens
    assert accepted > 0
    assert len(texts) == 2


@pytest.mark.exhaustive
def test_any_object(demo: Engine) -> None:
    """Any strings and nesting, but no markers of tool calls, which would be split off as calls."""
    for seed in range(2):
        sampling = GenerationOptions(temperature=1.0, top_p=0.9, seed=seed)
        run = demo.generate(PROMPTS[0], replace(sampling, max_tokens=60, json_schema={"type": "object"}))
        assert "<tool_call>" not in run.text
        if run.finish_reason == "stop":
            assert isinstance(json.loads(run.text), dict)
    assert isinstance(
        json.loads(demo.generate(PROMPTS[0], GenerationOptions(json_schema={"type": "object"})).text), dict
    )


def test_an_answer_cut_short_is_cut_for_its_length(engine: Engine) -> None:
    whole = engine.generate(PROMPTS[0], GenerationOptions(max_tokens=300, json_schema=ORDER))
    for depth in (0, 3):
        run = engine.generate(PROMPTS[0], GenerationOptions(max_tokens=9, depth=depth, json_schema=ORDER))
        assert (run.tokens, run.finish_reason) == (whole.tokens[:9], "length")


def test_a_head_that_drafts_what_is_forbidden_changes_nothing(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = engine.generate(PROMPTS[0], GenerationOptions(max_tokens=300, json_schema=ORDER))
    forbidden = engine.tokenizer.encode("!!!")[-1]

    def propose(self: MTPChain, requests: list[DraftRequest]) -> list[Draft]:
        requests[0].sequence.take_pending()
        depth = requests[0].depth
        return [Draft(mx.full((1, depth), forbidden, mx.uint32), [one_hot(forbidden, 288)] * depth)]

    monkeypatch.setattr(MTPChain, "propose_shared", propose)
    for sampling in (GenerationOptions(), GenerationOptions(temperature=1.0, seed=0)):
        run = engine.generate(PROMPTS[0], replace(sampling, depth=3, verify="token", json_schema=ORDER))
        assert_order(run.text)
        assert run.stats.drafted > 0
        assert run.stats.accepted == 0
        assert run.tokens == honest.tokens or not sampling.greedy


def test_penalties_and_logprobs_go_with_it(engine: Engine) -> None:
    sampling = GenerationOptions(frequency_penalty=0.5, repetition_penalty=1.1)
    found: list[Result] = [
        engine.generate(PROMPTS[0], replace(sampling, depth=depth, json_schema=ORDER)) for depth in (0, 1, 3)
    ]
    assert found[0].tokens == found[1].tokens == found[2].tokens
    assert found[0].tokens != engine.generate(PROMPTS[0], GenerationOptions(max_tokens=300, json_schema=ORDER)).tokens
    assert_order(found[0].text)
    chunks = list(engine.stream(PROMPTS[0], replace(sampling, json_schema=ORDER, logprobs=0)))
    assert [one.token for chunk in chunks for one in chunk.logprobs] == found[0].tokens


def test_the_next_turn_is_free_again(engine: Engine) -> None:
    free = engine.generate(PROMPTS[0], GenerationOptions(max_tokens=20))
    engine.generate(PROMPTS[0], GenerationOptions(max_tokens=20, json_schema=ORDER))
    assert engine.generate(PROMPTS[0], GenerationOptions(max_tokens=20)).tokens == free.tokens


# -- thinking -------------------------------------------------------------------------------------------------


@pytest.mark.exact
@pytest.mark.parametrize("seed", cases([1, 3], default=(1,)))
def test_the_schema_holds_behind_the_thinking_that_the_prompt_opened(demo: Engine, seed: int) -> None:
    """A bias has the demo, which never learnt to think, end it after a while."""
    prompt = f"<|im_start|>user\n{PROMPTS[0]}<|im_end|>\n<|im_start|>assistant\n<think>\n"
    sampling = GenerationOptions(temperature=1.0, seed=seed, logit_bias={THINK_END: 13.0})
    plain, *others = (
        demo.generate(prompt, replace(sampling, max_tokens=100, depth=depth, json_schema=SIZE), raw=True)
        for depth in (0, 1, 3)
    )
    assert plain.finish_reason == "stop"
    thought, answer = plain.text.split("</think>")
    assert thought
    assert json.loads(answer)["size"] in ("small", "large", 3, None)
    for run in others:
        assert run.tokens == plain.tokens
        assert run.stats.accepted > 0


def bits(row: mx.array) -> list[int]:
    """The tokens that may come."""
    return [token for token, may in enumerate(row.tolist()) if may]  # type: ignore[arg-type]


def grammar(demo: Engine, schema: dict[str, Any], prompt: str = "hello") -> Grammar:
    ids = demo.tokenizer.encode(prompt)
    return grammar_of(GenerationOptions(json_schema=schema), token_trie(demo.tokenizer), demo.tokenizer, ids)


def test_rows_behind_the_mark_of_one_draft_are_masked(demo: Engine) -> None:
    one = grammar(demo, {"type": "integer"}, "<think>\n")
    digits, ends = demo.tokenizer.encode("0123456789"), sorted(demo.tokenizer.eos_token_ids)
    word = demo.tokenizer.encode("latte")[0]
    rows = one.masks([word, THINK_END, digits[1], digits[2]])
    markers = {*demo.tokenizer.think_start_tokens, *demo.tokenizer.tool_call_start_tokens}
    markers |= {*demo.tokenizer.tool_call_end_tokens}
    anything = sorted(set(range(rows.shape[1])) - {*ends, *markers})
    assert bits(rows[0]) == bits(rows[1]) == anything, "thinking is free, but for the end of the turn and tool calls"
    minus = demo.tokenizer.encode("-")[0]
    assert bits(rows[2]) == sorted([*digits, minus])
    assert bits(rows[3]) == bits(rows[4]) == sorted([*digits, *ends]), "it may go on or end"
    assert mx.array_equal(one.masks([]), rows[:1]), "asking changes nothing"
    one.advance([word, THINK_END])
    assert mx.array_equal(one.masks([digits[1]]), rows[2:4])


def test_a_mark_of_several_tokens(demo: Engine) -> None:
    trie, ends = token_trie(demo.tokenizer), demo.tokenizer.eos_token_ids
    schema = LLMatcher.grammar_from_json_schema({"enum": [7]})
    (seven,) = demo.tokenizer.encode("7")
    one = Grammar(LLMatcher(trie, schema), Markers(ends, think_end=(50, 60, 50)))
    rows = one.masks([50, 60, 60, 50, 60, 50, seven])
    assert [bits(row) == [seven] for row in rows[:7]] == [False] * 6 + [True]
    assert bits(rows[7]) == sorted(ends)
    one.advance([50, 60])
    one.advance([50])
    assert bits(one.masks([])[0]) == [seven]


def test_drafts_behind_an_end_or_a_forbidden_one_are_not_looked_at(demo: Engine) -> None:
    one = grammar(demo, {"type": "integer"})
    first, second = demo.tokenizer.encode("1")[0], demo.tokenizer.encode("latte")[0]
    before = bits(one.masks([])[0])
    for drafts in ([second, first, first], [first, 2, first], [2, 2, 2]):
        assert one.masks(drafts).shape[0] == 4
        assert bits(one.masks([])[0]) == before
    one.advance([first, 2])
    assert set(bits(one.masks([])[0])) >= {0, 2}


# -- errors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"type": "objekt"}, "Invalid type: objekt"),
        ({"type": "object", "unevaluatedProperties": False}, "unevaluatedProperties"),
        ({"$ref": "#/$defs/nowhere"}, "nowhere"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, "minimum"),
        ({"type": "string", "pattern": "("}, "unclosed group"),
        ({"enum": {1, 2}}, "is not JSON"),
        (["type"], "expected a JSON schema as a mapping"),
        ("object", "expected a JSON schema as a mapping"),
    ],
    ids=str,
)
def test_a_schema_that_cannot_be_followed_is_refused_at_once(demo: Engine, schema: Any, says: str) -> None:
    with pytest.raises(OptionError, match=says) as error:
        demo.stream(PROMPTS[0], GenerationOptions(json_schema=schema))
    assert str(error.value).startswith("json_schema ")
    assert len(str(error.value).splitlines()) < 6


def test_a_tokenizer_that_cannot_be_read_is_refused_at_once(
    raw_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load(raw_checkpoint("qwen3_5", dtype="float32"))
    monkeypatch.setattr(type(engine.tokenizer._tokenizer), "backend_tokenizer", None)
    with pytest.raises(OptionError, match="json_schema does not go with this model's tokenizer"):
        engine.stream([5, 6], GenerationOptions(json_schema=ORDER))
