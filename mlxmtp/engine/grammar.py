"""JSON schemas as grammars: llguidance says which tokens may come next."""

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import mlx.core as mx
from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from mlxmtp.decoding.logits_processors import TokenMask
from mlxmtp.engine.output import opens_thinking
from mlxmtp.errors import OptionError

WHITESPACE = r" |\r?\n[ \t]{0,32}"
"""What may come between two tokens of JSON; llguidance allows any amount, and a model could indent for ever."""


class Grammar(TokenMask):
    """The logits processor that holds a turn to a grammar.

    An end token is allowed where the grammar may end, and nowhere else.

    Args:
        matcher: llguidance's parser, at the start of the grammar.
        end_tokens: the end tokens.
        think_end: the tokens that end the thinking that the prompt has opened; the grammar starts after them, and
            before them every token but an end token is allowed. (): the grammar starts at once.
        markers: tokens that start or end thinking and tool calls; never allowed, because the text would be split there.
    """

    def __init__(
        self,
        matcher: LLMatcher,
        end_tokens: Collection[int],
        think_end: Sequence[int] = (),
        markers: Collection[int] = (),
    ) -> None:
        self._matcher = matcher
        self._markers = markers
        self._end_tokens = frozenset(end_tokens)
        self._think_end = tuple(think_end)
        self._thinking: tuple[int, ...] | None = () if think_end else None  # its last tokens; None: it is over
        mask_bytes = len(self._allowed())
        self._all_tokens = bytes([255]) * mask_bytes
        self._no_end = _without(self._all_tokens, end_tokens)
        self._next = self._mask(self._thinking)

    def masks(self, drafts: Sequence[int]) -> mx.array:
        masks, thinking, consumed = [self._next], self._thinking, 0
        for draft in drafts:
            if draft in self._end_tokens:
                break  # nothing follows an end token
            if thinking is not None:
                thinking = self._think(thinking, draft)
            elif self._matcher.try_consume_tokens([draft]):
                consumed += 1
            else:
                break  # not allowed: the drafts after it cannot be accepted
            masks.append(self._mask(thinking))
        self._matcher.rollback(consumed)
        masks += [self._all_tokens] * (len(drafts) + 1 - len(masks))
        bits: Any = memoryview(b"".join(masks)).cast("I")
        words = mx.array(bits).reshape(len(masks), -1, 1)
        return (words >> mx.arange(32, dtype=mx.uint32) & 1).astype(mx.bool_).flatten(1)

    def advance(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            if token in self._end_tokens:
                break
            if self._thinking is not None:
                self._thinking = self._think(self._thinking, token)
            else:
                self._matcher.consume_token(token)
        self._next = self._mask(self._thinking)

    def _think(self, thinking: tuple[int, ...], token: int) -> tuple[int, ...] | None:
        """The last tokens of the thinking after one more token, or None where that token ends it."""
        last = (*thinking, token)[-len(self._think_end) :]
        return None if last == self._think_end else last

    def _mask(self, thinking: tuple[int, ...] | None) -> bytes:
        """The tokens that may come next, one bit for each token."""
        return self._allowed() if thinking is None else self._no_end

    def _allowed(self) -> bytes:
        mask: bytes = self._matcher.compute_bitmask()
        if self._matcher.is_error():  # a limit of the parser was met; it stays in error
            raise OptionError(f"json_schema cannot be followed any further: {self._matcher.get_error()}; simplify it")
        return _without(mask, self._markers)


def _without(mask: bytes, tokens: Collection[int]) -> bytes:
    """The mask with the bits of these tokens cleared."""
    bits = int.from_bytes(mask, "little")
    for token in tokens:
        bits &= ~(1 << token)
    return bits.to_bytes(len(mask), "little")


def token_trie(tokenizer: Any) -> LLTokenizer:
    """Return the vocabulary in llguidance's form. It is the same for every turn; a large one takes about a second.

    Raises:
        OptionError: llguidance cannot read this tokenizer.
    """
    try:
        text, end_tokens = tokenizer.backend_tokenizer.to_str(), sorted(tokenizer.eos_token_ids)
        return LLTokenizer(text, eos_token=end_tokens, slices=LLTokenizer.json_slices())
    except Exception as error:  # slow tokenizers have no backend, and llguidance raises what it pleases
        raise OptionError(f"json_schema does not go with this model's tokenizer ({error})") from error


def json_grammar(schema: Mapping[str, Any], trie: LLTokenizer, tokenizer: Any, prompt: list[int]) -> Grammar:
    """Return the grammar of JSON with this schema.

    Where the prompt opens the thinking, the grammar starts after its end. Elsewhere it starts at the first token, so
    that a model that would open the thinking itself does not think.

    Args:
        schema: {"type": "object"} for any object. Properties come in the order of the schema.
        trie: `token_trie` of the tokenizer, mlx-lm's `TokenizerWrapper`.
        prompt: token ids of the prompt.

    Raises:
        OptionError: not a schema, or a schema with parts that no grammar can guarantee; the message names them.
    """
    if not isinstance(schema, Mapping):
        raise OptionError(f"json_schema is {schema!r}; expected a JSON schema as a mapping")
    try:
        text = json.dumps(dict(schema))
        grammar = LLMatcher.grammar_from_json_schema(text, defaults={"whitespace_pattern": WHITESPACE})
    except (TypeError, ValueError, RecursionError) as error:
        raise OptionError(f"json_schema is not JSON ({error}); expected a JSON schema as a mapping") from error
    matcher = LLMatcher(trie, grammar, log_level=0, limits=LLParserLimits(verbose_errors=False))
    if matcher.is_error():
        raise OptionError(f"json_schema cannot be followed: {matcher.get_error()}; change or leave out that part")
    think_end = tokenizer.think_end_tokens if opens_thinking(tokenizer, prompt) else ()
    return Grammar(matcher, tokenizer.eos_token_ids, think_end, _marker_tokens(tokenizer))


def _marker_tokens(tokenizer: Any) -> set[int]:
    """The markers of thinking and tool calls that are a single token."""
    names = ("think_start", "think_end", "tool_call_start", "tool_call_end")
    markers = (getattr(tokenizer, f"{name}_tokens") for name in names)
    return {marker[0] for marker in markers if marker and len(marker) == 1}
