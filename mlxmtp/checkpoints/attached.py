"""mlxmtp's own data folder: heads kept for models of the Hub cache, which itself is never changed."""

import os
import sys
from pathlib import Path


def data_folder() -> Path:
    """Where mlxmtp keeps what it makes, as the platform has it (XDG base directories on Linux)."""
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "mlxmtp"
    base = os.environ.get("XDG_DATA_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".local" / "share") / "mlxmtp"


def attached_folder(repo: str, revision: str) -> Path:
    """The folder of a repo's attached head: `mtp.safetensors`, and its facts in `config.json`."""
    return data_folder() / "heads" / repo.replace("/", "--") / revision


def partial_file(repo: str, revision: str) -> Path:
    """Where the head tensors of an original repo are gathered, so that a stopped download goes on."""
    return data_folder() / "partial" / f"{repo.replace('/', '--')}-{revision}.safetensors"
