"""A text for each row of the embedding. Tokenizers have holes between their ids, and embeddings have rows beyond them.

mlx-lm's streaming detokenizers fail at such an id, or write "!" for it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mlx_lm import tokenizer_utils


class EveryId:
    """A tokenizer as mlx-lm's detokenizers read it. An id without a token has an empty text.

    Args:
        tokenizer: of transformers.
        count: ids are below it.
    """

    def __init__(self, tokenizer: Any, count: int) -> None:
        self._tokenizer = tokenizer
        self._count = count
        self._tokens = {id: token for token, id in tokenizer.get_vocab().items()}

    def __len__(self) -> int:
        return self._count

    def encode(self, text: str, **options: Any) -> Any:
        return self._tokenizer.encode(text, **options)

    def decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode([one for one in ids if one in self._tokens]))

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [self._tokens.get(one, "") for one in ids]


@contextmanager
def text_for_every_id(count: int | None) -> Iterator[None]:
    """Have mlx-lm make its wrapper of a tokenizer with a detokenizer that has a text for every id.

    mlx-lm makes the detokenizer together with the wrapper, and fails there at some holes.

    Args:
        count: rows of the embedding; None: as many as the tokenizer has tokens.
    """
    made = tokenizer_utils.TokenizerWrapper

    def wrapper(tokenizer: Any, detokenizer_class: Any, **options: Any) -> Any:
        return made(
            tokenizer,
            lambda plain: detokenizer_class(EveryId(plain, len(plain) if count is None else count)),
            **options,
        )

    tokenizer_utils.TokenizerWrapper = wrapper  # type: ignore[assignment, misc]
    try:
        yield
    finally:
        tokenizer_utils.TokenizerWrapper = made  # type: ignore[misc]
