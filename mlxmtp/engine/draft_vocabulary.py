"""Which tokens may be drafted: the tokenizer's most frequent ones, or those of a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlxmtp.errors import OptionError

EXPECTED = "token ids, as a JSON list or one a line"


def draft_tokens(asked: int | str | Path, tokenizer: Any, vocabulary: int) -> list[int]:
    """Token ids in ascending order, special tokens among them: they end turns and open calls.

    Args:
        asked: how many of the most frequent, or a file of token ids. vocabulary: rows of the output matrix.

    Raises:
        OptionError: it is neither, or there are no such tokens.
    """
    try:
        count = int(str(asked))
    except ValueError:
        chosen: Sequence[int] = _of_file(Path(str(asked)), vocabulary)
    else:
        if count < 1:
            raise OptionError(f"--draft-vocab is {count}; expected at least 1 token, or a file of {EXPECTED}")
        chosen = _by_frequency(tokenizer)[:count]
    special = [*tokenizer.added_tokens_decoder, *tokenizer.eos_token_ids]
    return sorted({token for token in (*chosen, *special) if token < vocabulary})


def _by_frequency(tokenizer: Any) -> list[int]:
    """All tokens, the most frequent first: a unigram model has their likelihoods, byte pairs were merged in order."""
    fast = getattr(tokenizer, "backend_tokenizer", None)
    if fast is None:
        raise OptionError(f"--draft-vocab: this tokenizer does not tell frequencies; name a file of {EXPECTED}")
    model = json.loads(fast.to_str())["model"]
    if model["type"] == "Unigram":
        scores = [score for _, score in model["vocab"]]
        return sorted(range(len(scores)), key=lambda token: -scores[token])
    return sorted(model["vocab"].values())


def _of_file(path: Path, vocabulary: int) -> list[int]:
    try:
        text = path.expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise OptionError(f"--draft-vocab {path}: {reason}; expected a number, or a file of {EXPECTED}") from error
    try:
        found = json.loads(text) if text.lstrip().startswith("[") else [int(line) for line in text.split()]
    except (ValueError, RecursionError) as error:
        raise OptionError(f"--draft-vocab {path}: {error}; expected {EXPECTED}") from error
    wrong = [token for token in found if type(token) is not int or not 0 <= token < vocabulary]
    if wrong or not found:
        what = f"{wrong[0]!r} is no token of this model (0 to {vocabulary - 1})" if wrong else "there are none"
        raise OptionError(f"--draft-vocab {path}: {what}; expected {EXPECTED}")
    return found
