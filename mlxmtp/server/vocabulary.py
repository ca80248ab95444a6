"""The texts and bytes of single tokens, for log-probabilities."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from llguidance import LLTokenizer


class Vocabulary:
    """The tokens of a model, one by one.

    Args:
        tokenizer: mlx-lm's `TokenizerWrapper`.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def prepare(self) -> None:
        """Read the bytes of all tokens: the first time, a large vocabulary takes about a second."""
        _ = self._bytes

    def text(self, token: int) -> str:
        """The text of a token. U+FFFD stands for bytes that are only a part of a character."""
        own = self._own_bytes(token)
        return str(self._tokenizer.decode([token])) if own is None else own.decode(errors="replace")

    def token_bytes(self, token: int) -> bytes:
        """The token's own bytes: joined over an answer, they are the bytes of its text."""
        own = self._own_bytes(token)
        return self.text(token).encode(errors="replace") if own is None else own

    def characters(self, token: int) -> int:
        """The number of characters that begin in a token."""
        return sum(byte & 0xC0 != 0x80 for byte in self.token_bytes(token))  # UTF-8: 10xxxxxx continues a character

    def unique_text(self, token: int) -> str:
        """The text of a token, or its bytes where it is a part of a character, in the notation of OpenAI's API."""
        own = self.token_bytes(token)
        try:
            own.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in own)
        return self.text(token)

    def _own_bytes(self, token: int) -> bytes | None:
        """None: llguidance cannot read this tokenizer. An id that the tokenizer does not have has no bytes."""
        if self._bytes is None:
            return None
        return b"" if self._tokenizer.convert_ids_to_tokens(token) is None else bytes(self._bytes.decode_bytes([token]))

    @cached_property
    def _bytes(self) -> LLTokenizer | None:
        """None: llguidance cannot read this tokenizer."""
        try:
            return LLTokenizer(self._tokenizer.backend_tokenizer.to_str())
        except Exception:  # slow tokenizers have no backend, and llguidance raises what it pleases
            return None
