"""The tokenizer of a model."""

import os
from pathlib import Path
from typing import Any

from mlx_lm import utils

from mlxmtp.checkpoints import check_tokenizer
from mlxmtp.errors import CheckpointError


def load_tokenizer(path: Path, ends: int | list[int] | None = None) -> Any:
    """mlx-lm's `TokenizerWrapper` of a model's folder.

    Args:
        ends: ids that end a turn; None: the tokenizer's own.

    Raises:
        CheckpointError: its files are missing or damaged.
    """
    check_tokenizer(str(path), os.listdir(path))
    try:
        return utils.load_tokenizer(path, eos_token_ids=ends)
    except Exception as error:  # transformers and tokenizers raise whatever they please on a damaged file
        raise CheckpointError(f"{path}: its tokenizer cannot be read ({error})") from error
