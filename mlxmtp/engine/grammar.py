"""JSON schemas and tool calls as grammars: llguidance says which tokens may come next."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import mlx.core as mx
from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from mlxmtp.decoding.logits_processors import TokenMask
from mlxmtp.engine.output import opens_thinking
from mlxmtp.engine.request import GenerationOptions
from mlxmtp.errors import OptionError

WHITESPACE = r" |\r?\n[ \t]{0,32}"
"""What may come between two tokens of JSON; llguidance allows any amount, and a model could indent for ever."""


class Phase(Enum):
    """The part of a turn that the next token belongs to."""

    THINKING = auto()
    """Free text up to the marker that ends the thinking."""
    GRAMMAR = auto()
    """Text of the grammar."""
    CALL = auto()
    """Free text up to the marker that ends a tool call."""
    BETWEEN_CALLS = auto()
    """Line breaks, then another tool call or the end of the turn."""
    END = auto()
    """The end of the turn."""


@dataclass(frozen=True)
class State:
    """Args: tokens: the last tokens of the thinking, or of the grammar's text."""

    phase: Phase
    tokens: tuple[int, ...] = ()


@dataclass(frozen=True)
class Markers:
    """Tokens that have a meaning of their own in a turn.

    Args:
        ends: the end tokens.
        inner: markers that are never part of the grammar's text or of the thinking: the text would be split there.
        think_end: ends the thinking that the prompt has opened; the grammar starts after it. (): it starts at once.
        call: begins and ends a tool call, which may come instead of the grammar's text; None: no calls.
        closing: comes after the grammar's text, and then the turn ends; None: an end token follows.
        line_breaks: may come between tool calls.
    """

    ends: Collection[int]
    inner: Collection[int] = ()
    think_end: tuple[int, ...] = ()
    call: tuple[int, int] | None = None
    closing: int | None = None
    line_breaks: Collection[int] = ()


class Grammar(TokenMask):
    """The logits processor that holds a turn to a grammar.

    An end token is allowed where the grammar may end, and nowhere else.

    Args:
        matcher: llguidance's parser, at the start of the grammar.
    """

    def __init__(self, matcher: LLMatcher, markers: Markers) -> None:
        self._matcher = matcher
        self._markers = markers
        self._state = State(Phase.THINKING if markers.think_end else Phase.GRAMMAR)
        mask_bytes = len(matcher.compute_bitmask())
        self._all_tokens = bytes([255]) * mask_bytes
        ends, none = markers.ends, bytes(mask_bytes)
        thinking = _without(_without(self._all_tokens, markers.inner), ends)
        self._fixed = {
            Phase.THINKING: _with(thinking, markers.think_end),
            Phase.CALL: _without(self._all_tokens, ends),
            Phase.BETWEEN_CALLS: _with(none, {*(markers.call or ())[:1], *markers.line_breaks, *ends}),
            Phase.END: _with(none, ends),
        }
        self._next = self._mask(self._state, matcher)

    def masks(self, drafts: Sequence[int]) -> mx.array:
        masks, state = [self._next], self._state
        # A copy, because llguidance's `rollback` after `compute_bitmask` keeps a part of the rejected tokens' state.
        matcher = self._matcher.deep_copy() if drafts else self._matcher
        for draft in drafts:
            if draft in self._markers.ends or (after := self._after(state, draft, matcher)) is None:
                break  # nothing follows an end token, or a draft that is not allowed
            state = after
            masks.append(self._mask(state, matcher))
        masks += [self._all_tokens] * (len(drafts) + 1 - len(masks))
        bits: Any = memoryview(b"".join(masks)).cast("I")
        words = mx.array(bits).reshape(len(masks), -1, 1)
        return (words >> mx.arange(32, dtype=mx.uint32) & 1).astype(mx.bool_).flatten(1)

    def advance(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            if token in self._markers.ends:
                break
            after = self._after(self._state, token, self._matcher)
            assert after, f"token {token} was accepted, and the grammar forbids it"
            self._state = after
        self._next = self._mask(self._state, self._matcher)

    def _after(self, state: State, token: int, matcher: LLMatcher) -> State | None:
        """The state after one more token; None: the grammar forbids it. The matcher goes along."""
        markers = self._markers
        call_start, call_end = markers.call or (None, None)
        match state.phase:
            case Phase.THINKING:
                last = (*state.tokens, token)[-len(markers.think_end) :]
                return State(Phase.GRAMMAR) if last == markers.think_end else State(Phase.THINKING, last)
            case Phase.GRAMMAR if token == markers.closing:
                return State(Phase.END) if matcher.is_accepting() else None
            case Phase.GRAMMAR if token == call_start:
                return None if state.tokens else State(Phase.CALL)
            case Phase.GRAMMAR:
                return State(Phase.GRAMMAR, (token,)) if matcher.try_consume_tokens([token]) else None
            case Phase.CALL:
                return State(Phase.BETWEEN_CALLS if token == call_end else Phase.CALL)
            case Phase.BETWEEN_CALLS:
                return State(Phase.CALL if token == call_start else Phase.BETWEEN_CALLS)
        return None

    def _mask(self, state: State, matcher: LLMatcher) -> bytes:
        """The tokens that may come next, one bit for each token."""
        if state.phase is not Phase.GRAMMAR:
            return self._fixed[state.phase]
        mask: bytes = matcher.compute_bitmask()
        if matcher.is_error():  # a limit of the parser was met; it stays in error
            raise OptionError(f"json_schema cannot be followed any further: {matcher.get_error()}; simplify it")
        mask = _without(mask, self._markers.inner)
        if self._markers.closing is not None:
            mask = _without(mask, self._markers.ends)
            mask = _with(mask, [self._markers.closing]) if matcher.is_accepting() else mask
        if self._markers.call and not state.tokens:
            mask = _with(mask, self._markers.call[:1])
        return mask


def _without(mask: bytes, tokens: Collection[int]) -> bytes:
    """The mask with the bits of these tokens cleared."""
    bits = int.from_bytes(mask, "little")
    for token in tokens:
        bits &= ~(1 << token)
    return bits.to_bytes(len(mask), "little")


def _with(mask: bytes, tokens: Collection[int]) -> bytes:
    """The mask with the bits of these tokens set."""
    bits = int.from_bytes(mask, "little")
    for token in tokens:
        bits |= 1 << token
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


def grammar_of(options: GenerationOptions, trie: LLTokenizer, tokenizer: Any, prompt: list[int]) -> Grammar:
    """Return the grammar of a turn with a `json_schema` or a `call_grammar`.

    Where the prompt opens the thinking, the grammar starts after its end. Elsewhere it starts at the first token, so
    that a model that would open the thinking itself does not think.

    Args:
        trie: `token_trie` of the tokenizer, mlx-lm's `TokenizerWrapper`.
        prompt: token ids of the prompt.

    Raises:
        OptionError: not a schema, or a schema with parts that no grammar can guarantee; the message names them. Or
            tool calls may come instead, and the model does not begin them with a marker of their own.
    """
    ends, inner = tokenizer.eos_token_ids, _single_markers(tokenizer)
    if options.call_grammar is not None:
        matcher = _matcher(trie, LLMatcher.grammar_from_lark(options.call_grammar), "call_grammar")
        return Grammar(matcher, Markers(ends, inner, closing=call_end_token(tokenizer)))
    think_end = tokenizer.think_end_tokens if opens_thinking(tokenizer, prompt) else ()
    call = _call_markers(tokenizer) if options.tool_calls and tokenizer.has_tool_calling else None
    line_breaks = [ids[0] for ids in (_ids(tokenizer, "\n"), _ids(tokenizer, "\n\n")) if len(ids) == 1]
    matcher = _matcher(trie, _json_grammar(options.json_schema), "json_schema")
    return Grammar(matcher, Markers(ends, inner, tuple(think_end), call, line_breaks=line_breaks))


def call_end_token(tokenizer: Any) -> int | None:
    """Return the token that ends a tool call; None: the end is no token of its own."""
    end = tokenizer.tool_call_end_tokens if tokenizer.has_tool_calling else None
    return end[0] if end and len(end) == 1 else None


def _json_grammar(schema: Any) -> str:
    if not isinstance(schema, Mapping):
        raise OptionError(f"json_schema is {schema!r}; expected a JSON schema as a mapping")
    try:
        text = json.dumps(dict(schema))
        return str(LLMatcher.grammar_from_json_schema(text, defaults={"whitespace_pattern": WHITESPACE}))
    except (TypeError, ValueError, RecursionError) as error:
        raise OptionError(f"json_schema is not JSON ({error}); expected a JSON schema as a mapping") from error


def _matcher(trie: LLTokenizer, grammar: str, option: str) -> LLMatcher:
    matcher = LLMatcher(trie, grammar, log_level=0, limits=LLParserLimits(verbose_errors=False))
    if matcher.is_error():
        raise OptionError(f"{option} cannot be followed: {matcher.get_error()}; change or leave out that part")
    return matcher


def _call_markers(tokenizer: Any) -> tuple[int, int]:
    start, end = tokenizer.tool_call_start_tokens, call_end_token(tokenizer)
    if not start or len(start) != 1 or end is None:
        raise OptionError(
            "json_schema beside tool calls: this model's calls do not begin and end with tokens of their own; "
            "expected a schema without tools"
        )
    return start[0], end


def _single_markers(tokenizer: Any) -> set[int]:
    """The markers of thinking and tool calls that are a single token."""
    names = ("think_start", "think_end", "tool_call_start", "tool_call_end")
    markers = (getattr(tokenizer, f"{name}_tokens") for name in names)
    return {marker[0] for marker in markers if marker and len(marker) == 1}


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))
