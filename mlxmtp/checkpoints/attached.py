"""Heads in mlxmtp's data folder, for models in the Hub cache, which itself is never changed."""

from pathlib import Path

from mlxmtp.files import data_folder


def attached_folder(repo: str, revision: str) -> Path:
    """Return the folder of a repo's attached head: `mtp.safetensors`, and its description in `config.json`."""
    return data_folder() / "heads" / repo.replace("/", "--") / revision


def partial_file(repo: str, revision: str) -> Path:
    """Return the file in which a repo's head tensors are collected, so that a stopped download can continue."""
    return data_folder() / "partial" / f"{repo.replace('/', '--')}-{revision}.safetensors"
