"""JSON schemas as constraints: which tokens may come next, told by llguidance."""

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import mlx.core as mx
from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from mlxmtp.decoding.logits_processors import TokenMask
from mlxmtp.engine.parts import opens_thinking
from mlxmtp.errors import OptionError

# Between two tokens of JSON. Any amount, as llguidance allows by itself, would let a model indent for ever.
_SPACE = r" |\r?\n[ \t]{0,32}"


class Grammar(TokenMask):
    """The logits processor that holds a turn to a grammar.

    An end token may come where the grammar may end, and nowhere else.

    Args:
        matcher: llguidance's parser, at the grammar's start.
        ends: the end tokens.
        think_end: the tokens that end a thinking that the prompt has opened. All but end tokens may come up to them,
            the grammar starts behind. () if no thinking is open: the grammar starts at once.
        marks: tokens of thinking and calls; text that has one in it would be taken apart there, so they never come.
    """

    def __init__(
        self, matcher: LLMatcher, ends: Collection[int], think_end: Sequence[int] = (), marks: Collection[int] = ()
    ) -> None:
        self._matcher = matcher
        self._marks = marks
        self._ends = frozenset(ends)
        self._think_end = tuple(think_end)
        self._thought: tuple[int, ...] | None = () if think_end else None  # its newest tokens; None: it is over
        width = len(self._allowed())
        self._anything = bytes([255]) * width
        self._no_end = _without(self._anything, ends)
        self._first = self._row(self._thought)

    def masks(self, drafts: Sequence[int]) -> mx.array:
        rows, thought, consumed = [self._first], self._thought, 0
        for draft in drafts:
            if draft in self._ends:
                break  # nothing comes behind it
            if thought is not None:
                thought = self._behind(thought, draft)
            elif self._matcher.try_consume_tokens([draft]):
                consumed += 1
            else:
                break  # it may not come
            rows.append(self._row(thought))
        self._matcher.rollback(consumed)
        rows += [self._anything] * (len(drafts) + 1 - len(rows))
        bits: Any = memoryview(b"".join(rows)).cast("I")
        words = mx.array(bits).reshape(len(rows), -1, 1)
        return (words >> mx.arange(32, dtype=mx.uint32) & 1).astype(mx.bool_).flatten(1)

    def advance(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            if token in self._ends:
                break
            if self._thought is not None:
                self._thought = self._behind(self._thought, token)
            else:
                self._matcher.consume_token(token)
        self._first = self._row(self._thought)

    def _behind(self, thought: tuple[int, ...], token: int) -> tuple[int, ...] | None:
        """The thinking's newest tokens behind one more of them, or None where that ends it."""
        newest = (*thought, token)[-len(self._think_end) :]
        return None if newest == self._think_end else newest

    def _row(self, thought: tuple[int, ...] | None) -> bytes:
        """What may come next, a bit for each token."""
        return self._allowed() if thought is None else self._no_end

    def _allowed(self) -> bytes:
        row: bytes = self._matcher.compute_bitmask()
        if self._matcher.is_error():  # it stays so: the limits of the parser, met on the way
            raise OptionError(f"json_schema cannot be followed any further: {self._matcher.get_error()}; simplify it")
        return _without(row, self._marks)


def _without(row: bytes, tokens: Collection[int]) -> bytes:
    bits = int.from_bytes(row, "little")
    for token in tokens:
        bits &= ~(1 << token)
    return bits.to_bytes(len(row), "little")


def token_trie(tokenizer: Any) -> LLTokenizer:
    """The vocabulary as llguidance wants it; for large ones the work of about a second, and the same for every turn.

    Raises:
        OptionError: a tokenizer that llguidance cannot read.
    """
    try:
        text, ends = tokenizer.backend_tokenizer.to_str(), sorted(tokenizer.eos_token_ids)
        return LLTokenizer(text, eos_token=ends, slices=LLTokenizer.json_slices())
    except Exception as error:  # slow tokenizers have no backend, and llguidance raises what it pleases
        raise OptionError(f"json_schema does not go with this model's tokenizer ({error})") from error


def json_grammar(schema: Mapping[str, Any], trie: LLTokenizer, tokenizer: Any, prompt: list[int]) -> Grammar:
    """Holds a turn to JSON of this schema.

    Where the prompt opens the thinking, the schema holds behind the thinking's end; otherwise from the first token,
    so that a model that would open it by itself does not think.

    Args:
        schema: {"type": "object"} for any object. Properties come in the schema's order.
        trie: `token_trie` of the tokenizer, mlx-lm's `TokenizerWrapper`.
        prompt: its token ids.

    Raises:
        OptionError: not a schema, or one with parts that no grammar can promise; the message names them.
    """
    if not isinstance(schema, Mapping):
        raise OptionError(f"json_schema is {schema!r}; expected a JSON schema as a mapping")
    try:
        text = json.dumps(dict(schema))
        grammar = LLMatcher.grammar_from_json_schema(text, defaults={"whitespace_pattern": _SPACE})
    except (TypeError, ValueError, RecursionError) as error:
        raise OptionError(f"json_schema is not JSON ({error}); expected a JSON schema as a mapping") from error
    matcher = LLMatcher(trie, grammar, log_level=0, limits=LLParserLimits(verbose_errors=False))
    if matcher.is_error():
        raise OptionError(f"json_schema cannot be followed: {matcher.get_error()}; change or leave out that part")
    think_end = tokenizer.think_end_tokens if opens_thinking(tokenizer, prompt) else ()
    return Grammar(matcher, tokenizer.eos_token_ids, think_end, _marks(tokenizer))


def _marks(tokenizer: Any) -> set[int]:
    """The marks of thinking and calls that are a token each."""
    names = ("think_start", "think_end", "tool_call_start", "tool_call_end")
    marks = (getattr(tokenizer, f"{name}_tokens") for name in names)
    return {mark[0] for mark in marks if mark and len(mark) == 1}
