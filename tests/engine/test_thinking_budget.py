"""Thinking budgets: the marker comes after as many tokens. The tokens before a row decide, whatever was drafted."""

from dataclasses import replace

import mlx.core as mx

from mlxmtp import GenerationOptions, load
from mlxmtp.engine.loading import DEMO
from mlxmtp.engine.thinking_budget import ThinkingBudget

START, END, CALL, VOCABULARY = 4, 5, 6, 8


def forced(turn: list[int], accepted: int, num_rows: int, *, budget: int, start: int | None) -> list[bool]:
    """Whether the marker is the only token, for the last rows of a pass after `accepted` tokens of the turn."""
    processor = ThinkingBudget(budget, start, END, CALL)
    processor.begin([1, START])
    for token in turn[:accepted]:
        processor.advance([token])
    logits = mx.zeros((1, num_rows, VOCABULARY))
    allowed = processor.process(logits, mx.array([turn[accepted:]], mx.uint32).reshape(1, -1))[0] == 0
    rows: list[list[bool]] = allowed.tolist()  # type: ignore[assignment]
    assert all(row[END] and (all(row) or sum(row) == 1) for row in rows)
    return [not all(row) for row in rows]


def test_each_row_follows_from_the_tokens_before_it() -> None:
    for turn, start, budgets in (
        ([1, 2, 3, 2, 1], None, {1, 2, 3, 4, 5}),
        ([START, 2, 3, 2, 1], START, {1, 2, 3, 4, 5}),
        ([1, 2, 3, 2, 1], START, set()),  # it does not think
        ([1, 2, END, 2, 1], None, {1, 2}),
        ([1, CALL, 3, 2, 1], None, {1}),
    ):
        for budget in range(1, 8):
            expected = [count == budget and budget in budgets for count in range(len(turn) + 1)]
            for accepted in range(len(turn) + 1):
                for num_rows in range(1, len(turn) - accepted + 2):
                    found = forced(turn, accepted, num_rows, budget=budget, start=start)
                    assert found == expected[-num_rows:], (turn, budget, accepted, num_rows)


def test_a_thinking_ends_at_its_budget_with_drafts_too() -> None:
    engine = load(DEMO)
    end = engine.tokenizer.think_end_tokens[0]
    prompt = engine.tokenizer.encode("<|im_start|>user\nWrite a function<|im_end|>\n<|im_start|>assistant\n<think>\n")
    for more, budgets, depths in (
        ({}, (1, 4), (3,)),
        ({"temperature": 0.9, "seed": 3}, (4,), (3,)),
        ({"json_schema": {"type": "object"}}, (4,), (3,)),
    ):
        options = GenerationOptions(max_tokens=6, depth=0, **more)  # type: ignore[arg-type]
        free = engine.generate(prompt, options).tokens
        for budget in budgets:
            limited = replace(options, thinking_budget=budget)
            plain = engine.generate(prompt, limited)
            assert plain.tokens[: budget + 1] == [*free[:budget], end], (more, budget)
            for depth in depths:
                assert engine.generate(prompt, replace(limited, depth=depth)).tokens == plain.tokens, (more, budget)
