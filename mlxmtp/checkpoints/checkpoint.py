"""From what a user names, a folder or a Hub repo, to a checkpoint that is whole."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxmtp.checkpoints.tensors import TensorInfo, list_tensors
from mlxmtp.errors import CheckpointError

_REPO = re.compile(r"[\w.-]+/[\w.-]+")
_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", "*.tiktoken"]


@dataclass(frozen=True)
class Checkpoint:
    """A model's folder: its configuration, and every tensor its files hold."""

    folder: Path
    config: dict[str, Any]
    tensors: Mapping[str, TensorInfo]

    @property
    def model_type(self) -> str:
        """What mlx-lm chooses the architecture by."""
        kind: str = self.config["model_type"]
        return kind


def open_checkpoint(path_or_repo: str | Path) -> Checkpoint:
    """Open a checkpoint without reading its weights; a Hub repo ("owner/name") is downloaded to the Hub cache.

    Raises:
        CheckpointError: there is no such folder or repo, it cannot be reached, is no model, or is not complete.
    """
    folder = Path(path_or_repo).expanduser()
    if not folder.exists():
        name = str(path_or_repo)
        if not _REPO.fullmatch(name) or name.startswith("."):
            raise CheckpointError(f"{name}: no such folder; expected a model's folder or a Hub repo (owner/name)")
        folder = _download(name)
    return Checkpoint(folder, _read_config(folder), list_tensors(folder))


def _read_config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    if not file.is_file():
        raise CheckpointError(f"{folder}: no config.json; expected a model's folder")
    try:
        config = json.loads(file.read_text())
    except ValueError as error:
        raise CheckpointError(f"{file}: not valid JSON ({error})") from error
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise CheckpointError(f"{file}: no model_type; expected the configuration of a language model")
    return config


def _download(repo: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(repo, allow_patterns=_FILES))
    except GatedRepoError as error:
        raise CheckpointError(f"{repo}: gated; accept its terms on the Hub, then run `hf auth login`") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise CheckpointError(f"{repo}: no such folder, and no such repo on the Hub (or no access to it)") from error
    except Exception as error:  # the client lets its transport's errors through, and they have no common base
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{repo}: no such folder, and it cannot be downloaded from the Hub: {reason}") from error
