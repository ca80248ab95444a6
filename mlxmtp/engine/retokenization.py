"""Answers that come back as text: the prompt gets the ids that the model wrote, so that its caches go on.

A tokenizer may write the text of an answer with other ids than the model did: at a cut, under a grammar, or where the
model did not take the longest tokens. The caches of the answer are right all the same, for the text is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from mlxmtp.decoding.snapshots import PrefixInfo
from mlxmtp.engine.prompt import Rendered
from mlxmtp.errors import OptionError
from mlxmtp.prefixes import common_length

CONTROL = 256
"""Added to the id of a control token, which stands for no text: its name, spelled in a text, is something else."""
FEW = 4
"""Tokens whose texts are compared before the bytes of all tokens are needed, which take a second the first time."""


class TokenUnits:
    """What tokens stand for: their bytes, or one number above 255 for a control token.

    Args:
        tokenizer: mlx-lm's `TokenizerWrapper`.
        trie: returns `mlxmtp.engine.grammar.token_trie` of it.
    """

    def __init__(self, tokenizer: Any, trie: Callable[[], Any]) -> None:
        self._tokenizer = tokenizer
        self._trie = trie
        self._added = {token: entry.content for token, entry in tokenizer.added_tokens_decoder.items()}

    def __call__(self, token: int) -> Sequence[int]:
        """Return what a token stands for."""
        if token in self._added:  # some tokenizers add long runs of spaces or line ends
            text = self._added[token]
            return text.encode() if text.isspace() else (CONTROL + token,)
        trie = self._trie()
        return (trie.decode_bytes([token]) if token < trie.vocab_size else b"") or (CONTROL + token,)

    def may_agree(self, one: list[int], other: list[int]) -> bool:
        """Return False if the texts of two lists of tokens differ within their first tokens."""
        texts = [self._tokenizer.decode(tokens[:FEW]).rstrip("\ufffd") for tokens in (one, other)]
        return common_length(*texts) == min(map(len, texts))

    def is_control(self, token: int) -> bool:
        """Return whether a token is a control token."""
        return token in self._added and not self._added[token].isspace()


def restore_generated_ids(
    prompt: Rendered, known: Iterable[PrefixInfo], units: TokenUnits, *, drafting: bool, context: int
) -> Rendered:
    """Return a prompt of the same text whose answers have the ids that the model wrote, if that saves tokens to read.

    An answer is replaced if all texts up to its end, and the control tokens among them, are those of a known sequence.

    Args:
        prompt: a conversation as the tokenizer writes it.
        known: sequences of earlier turns.
        drafting: as in `PrefixInfo.longest_reusable_prefix`.
        context: tokens that a prompt and the first of its answer have to fit in.
    """
    known = list(known)

    def unread(candidate: Rendered, info: PrefixInfo) -> int:
        position = info.longest_reusable_prefix(candidate.tokens, drafting=drafting)
        return len(candidate.tokens) - (position.offset if position else 0)

    best, fewest = prompt, min((unread(prompt, info) for info in known), default=0)
    with suppress(OptionError):  # no trie: a tokenizer whose tokens have no bytes that llguidance knows
        for info in known:
            candidate = _with_ids_of(info, prompt, units)
            if len(candidate.tokens) < context and (count := unread(candidate, info)) < fewest:
                best, fewest = candidate, count
    return best


def _with_ids_of(info: PrefixInfo, prompt: Rendered, units: TokenUnits) -> Rendered:
    """The prompt with the ids of a sequence in all answers that both have from the beginning on."""
    written, tokens = info.tokens, list(prompt.tokens)
    boundaries = list(prompt.boundaries)
    at = 0  # up to here, both have the same ids
    for start, end in info.answers:
        at += common_length(written[at:end], tokens[at:end])
        if at == end:
            continue
        if at < start - 1:  # the token before an answer may merge with its first one
            break
        answer = written[at:end]
        while answer and units.is_control(answer[-1]):  # an end token; the template may have another
            answer.pop()
        stop = _end_of(answer, tokens, at, units)
        if stop is None:
            break
        tokens[at:stop] = answer
        grown = len(answer) - (stop - at)
        boundaries = [b + grown if b >= stop else b for b in boundaries if b <= at or b >= stop]
        at += len(answer)
    return replace(prompt, tokens=tokens, boundaries=tuple(boundaries))


def _end_of(answer: list[int], tokens: list[int], start: int, units: TokenUnits) -> int | None:
    """Where the tokens that begin at `start` have stood for the same as `answer`; None: they do not."""
    if not answer or not units.may_agree(answer, tokens[start : start + FEW]):
        return None
    ahead: list[int] = []  # what the tokens up to `stop` stand for beyond the answer's
    stop = start
    for token in answer:
        expected = list(units(token))
        while len(ahead) < len(expected):
            if stop == len(tokens):
                return None
            ahead += units(tokens[stop])
            stop += 1
        if ahead[: len(expected)] != expected:
            return None
        del ahead[: len(expected)]
    return None if ahead else stop
