"""From what a user names, a folder or a Hub repo, to a checkpoint that is whole."""

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxmtp.checkpoints import hub
from mlxmtp.checkpoints.attached import attached_folder
from mlxmtp.checkpoints.tensors import EXPECTED, SIDE_CAR, TensorInfo, contents, list_tensors, read_header
from mlxmtp.errors import CheckpointError

HEAD_FACTS = "mtp_head"
"""The key of config.json under which mlxmtp writes what a side-car is."""
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "tiktoken.model")


@dataclass(frozen=True)
class Checkpoint:
    """A model's folder: its configuration, and every tensor its files hold.

    `repo` and `revision` (a commit) tell where on the Hub it comes from, where it stands in the Hub cache; `base` is
    the repo that its card says it was made from.
    """

    folder: Path
    config: dict[str, Any]
    tensors: Mapping[str, TensorInfo]
    repo: str | None = None
    revision: str | None = None
    base: str | None = None

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.repo or str(self.folder)

    @property
    def model_type(self) -> str:
        """What mlx-lm chooses the architecture by."""
        kind: str = self.config["model_type"]
        return kind

    @property
    def text_config(self) -> dict[str, Any]:
        """The language model's own part of the configuration."""
        return text_config(self.config)


def text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The language model's part of a configuration, which in vision-language models is a part."""
    text: dict[str, Any] = config.get("text_config", config)
    return text


def open_checkpoint(path_or_repo: str | Path) -> Checkpoint:
    """Open a checkpoint without reading its weights; a Hub repo ("owner/name") is downloaded to the Hub cache.

    A head that `mlxmtp attach` keeps for a model of the Hub cache is taken in as the checkpoint's side-car.

    Raises:
        CheckpointError: there is no such folder or repo, it cannot be reached, is no model, or is not complete.
    """
    if not str(path_or_repo):
        raise CheckpointError("the model's name is empty; expected a model's folder or a Hub repo (owner/name)")
    folder = Path(path_or_repo).expanduser()
    if not folder.exists():
        folder = hub.download(str(path_or_repo))
    config, tensors = read_config(folder), list_tensors(folder)
    repo, revision = hub.origin(folder)
    if repo and revision and ((kept := attached_folder(repo, revision)) / SIDE_CAR).is_file():
        tensors |= read_header(kept / SIDE_CAR)
        config[HEAD_FACTS] = read_config(kept).get(HEAD_FACTS)
    return Checkpoint(folder, config, tensors, repo, revision, base_model(folder))


def read_config(folder: Path) -> dict[str, Any]:
    """A folder's config.json.

    Raises:
        CheckpointError: it is not there, or not a model's.
    """
    file = folder / "config.json"
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is a file; expected the folder of a model, or a Hub repo (owner/name)")
    if not file.is_file():
        raise CheckpointError(no_config(str(folder), os.listdir(folder)))
    return parse_config(file.read_bytes(), str(file))


def no_config(where: str, names: Iterable[str]) -> str:
    """What is said of a folder or repo of such files."""
    return f"{where}: no config.json; {contents(names)}; {EXPECTED}"


def check_tokenizer(where: str, names: Iterable[str]) -> None:
    """Whether a tokenizer is among a model's files.

    Raises:
        CheckpointError: there is none.
    """
    if not set(TOKENIZERS).intersection(names):
        raise CheckpointError(f"{where}: no tokenizer; expected one of {', '.join(TOKENIZERS)}")


def parse_config(content: bytes, name: str) -> dict[str, Any]:
    try:
        config = json.loads(content)
    except ValueError as error:
        raise CheckpointError(f"{name}: not valid JSON ({error})") from error
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise CheckpointError(f"{name}: no model_type; expected the configuration of a language model")
    if not isinstance(config.get("text_config", {}), dict):
        raise CheckpointError(f"{name}: its text_config is {config['text_config']!r}; expected an object")
    return config


def base_model(folder: Path) -> str | None:
    """The repo that a folder's readme says its model was made from, if it names one."""
    readme = folder / "README.md"
    if not readme.is_file():
        return None
    return card_base(readme.read_text(errors="replace"))


def card_base(card: str) -> str | None:
    """`base_model` of a model card's YAML head: a repo, or the first of a list of them."""
    found = re.search(r"\A---\n(?:.*\n)*?base_model:\s*(?:\n\s*-\s*)?[\"']?([\w.-]+/[\w.-]+)", card)
    return found[1] if found else None
