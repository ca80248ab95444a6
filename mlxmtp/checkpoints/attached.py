"""mlxmtp's own data folder: heads kept for models of the Hub cache, which itself is never changed."""

from pathlib import Path

from mlxmtp.files import data_folder


def attached_folder(repo: str, revision: str) -> Path:
    """The folder of a repo's attached head: `mtp.safetensors`, and its facts in `config.json`."""
    return data_folder() / "heads" / repo.replace("/", "--") / revision


def partial_file(repo: str, revision: str) -> Path:
    """Where the head tensors of an original repo are gathered, so that a stopped download goes on."""
    return data_folder() / "partial" / f"{repo.replace('/', '--')}-{revision}.safetensors"
