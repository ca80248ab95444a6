"""Heads in mlxmtp's data folder, for models in the Hub cache, which itself is never changed."""

from pathlib import Path

from mlxmtp.files import data_folder


def attached_folder(repo: str, revision: str) -> Path:
    """Return the folder of a repo's attached head: `mtp.safetensors`, and its description in `config.json`."""
    return data_folder() / "heads" / repo.replace("/", "--") / revision


def partial_folder() -> Path:
    """Return the folder of heads that are on their way."""
    return data_folder() / "partial"


def partial_file(name: str, revision: str) -> Path:
    """Return the file in which head tensors are collected, so that a stopped download can continue.

    Args:
        name: a repo, or a file in it.
    """
    return partial_folder() / f"{name.replace('/', '--')}-{revision}.safetensors"
