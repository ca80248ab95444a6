"""A limit for the tokens of the thinking: at the limit, only the marker that ends the thinking may come.

vLLM, SGLang and llama.cpp do the same. The tokens before a row decide, so drafts are verified as ever.
"""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from mlxmtp.decoding.logits_processors import LogitsProcessor
from mlxmtp.engine.output import opens_thinking
from mlxmtp.engine.request import GenerationOptions


class ThinkingBudget:
    """The logits processor of a limit.

    Args:
        budget: tokens of the turn before the marker, where the turn begins in the thinking.
        start: begins the thinking as the first token of the turn; None: the prompt has begun it.
        end: ends the thinking.
        call: begins a tool call, which ends the thinking too; None: no single token does.
    """

    reads_tokens = False

    def __init__(self, budget: int, start: int | None, end: int, call: int | None) -> None:
        self._budget, self._start, self._end = budget, start, end
        self._ends = {end} if call is None else {end, call}
        self._tokens: list[int] = []

    def begin(self, prompt: Sequence[int]) -> None:  # noqa: ARG002
        self._tokens = []

    def advance(self, tokens: Sequence[int]) -> None:
        self._tokens += tokens[: self._budget + 1 - len(self._tokens)]

    def process(self, logits: mx.array, tokens: mx.array) -> mx.array:
        num_rows, vocabulary = logits.shape[1:]
        unread = self._budget - len(self._tokens)
        row = num_rows - 1 - tokens.shape[1] + unread  # the row after as many tokens as the budget has
        if not 0 <= row < num_rows or unread < 0:
            return logits
        known = mx.array([self._tokens], mx.uint32).reshape(1, -1)
        before = mx.concatenate([known, tokens[:, :unread].astype(mx.uint32)], axis=1)
        thinks = ~mx.any(before[..., None] == mx.array(sorted(self._ends), mx.uint32))
        if self._start is not None:
            thinks = thinks & (before[0, 0] == self._start)
        others = (mx.arange(vocabulary) != self._end) & (mx.arange(num_rows)[:, None] == row)
        return mx.where(thinks & others, mx.array(-mx.inf, logits.dtype), logits)


def budget_processors(options: GenerationOptions, tokenizer: Any, prompt: list[int]) -> list[LogitsProcessor]:
    """Return the processor of `thinking_budget`; none where markers of thinking are no single tokens."""
    if options.thinking_budget is None or not tokenizer.has_thinking:
        return []
    start, end = tokenizer.think_start_tokens, tokenizer.think_end_tokens
    call = tokenizer.tool_call_start_tokens if tokenizer.has_tool_calling else None
    opened = opens_thinking(tokenizer, prompt)
    if len(end) != 1 or not (opened or len(start) == 1):
        return []
    first = None if opened else start[0]
    return [ThinkingBudget(options.thinking_budget, first, end[0], call[0] if call and len(call) == 1 else None)]
