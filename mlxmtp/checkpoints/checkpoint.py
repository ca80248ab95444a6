"""Open a checkpoint: a folder or a Hub repo, with its configuration and its list of tensors."""

import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxmtp.checkpoints import hub
from mlxmtp.checkpoints.attached import attached_folder
from mlxmtp.checkpoints.tensors import EXPECTED, SIDECAR, TensorInfo, contents, list_tensors, read_header, readable
from mlxmtp.errors import CheckpointError
from mlxmtp.files import MAX_FILE_BYTES, open_regular, parse_json, read_regular
from mlxmtp.units import size

DEMO = Path(__file__).parent.parent / "demo"
"""The folder of the bundled model; its name stands for it wherever there is no such file."""
HEAD_FACTS = "mtp_head"
"""The key of config.json under which mlxmtp writes the description of a side-car."""
CONTEXT_KEYS = ("max_position_embeddings", "n_positions")
"""Keys of a configuration; the latter is GPT-2's. Learned positions beyond it would be read from foreign memory."""
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "tiktoken.model")
"""File names; a model without any of them has no tokenizer."""
TEMPLATES = "additional_chat_templates"
"""The folder of a model's named chat templates."""
KEPT_FILES = ("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template*",
              f"{TEMPLATES}/*.jinja", "*.tiktoken", "*.model", "generation_config.json")  # fmt: skip
"""Patterns of the files beside the weights that a conversion keeps."""
READ_FILES = (*KEPT_FILES, "hf_quant_config.json", "*processor_config.json")
"""Patterns of the files beside config.json and the weights that mlx-lm and its tokenizers open."""
MAX_CARD_BYTES = 1 << 16
"""Bytes of a model card that are read; its YAML header is at the beginning."""


@dataclass(frozen=True)
class Checkpoint:
    """A model's folder, its configuration, and the tensors in its files.

    Args:
        folder: where the files are.
        config: the content of config.json.
        tensors: by name.
        repo: owner/name, of a model in the Hub cache.
        revision: its commit.
        base: the repo that the model card names as `base_model`.
    """

    folder: Path
    config: dict[str, Any]
    tensors: Mapping[str, TensorInfo]
    repo: str | None = None
    revision: str | None = None
    base: str | None = None

    @property
    def name(self) -> str:
        """The repo, or else the folder, for messages."""
        return self.repo or str(self.folder)

    @property
    def model_type(self) -> str:
        """The key by which mlx-lm selects the architecture."""
        kind: str = self.config["model_type"]
        return kind

    @property
    def text_config(self) -> dict[str, Any]:
        """The language model's part of the configuration."""
        return text_config(self.config)


def text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `text_config` of a vision-language configuration, or the whole of another."""
    text: dict[str, Any] = config.get("text_config", config)
    return text


def stated_context(config: Mapping[str, Any]) -> int | None:
    """Return the most tokens that a model was made for, as its configuration states it; None: it does not.

    Of several numbers the smallest: learned positions have a table with that many rows.
    """
    text = text_config(config)
    return min((text[key] for key in CONTEXT_KEYS if text.get(key)), default=None)


def open_checkpoint(path_or_repo: str | Path) -> Checkpoint:
    """Open a checkpoint without reading its weights; download a Hub repo ("owner/name") to the Hub cache.

    The head that `mlxmtp attach` stored for a model in the Hub cache is added as the checkpoint's side-car.

    Raises:
        CheckpointError: there is no such folder or repo, it cannot be reached, is not a model, or is incomplete.
    """
    if not str(path_or_repo):
        raise CheckpointError("the model's name is empty; expected a model's folder or a Hub repo (owner/name)")
    folder = local_path(path_or_repo) or hub.download(str(path_or_repo))
    config, tensors = read_config(folder), list_tensors(folder)
    visible_files(folder, READ_FILES)
    repo, revision = hub.origin(folder)
    if repo and revision and ((kept := attached_folder(repo, revision)) / SIDECAR).is_file():
        tensors |= read_header(kept / SIDECAR)
        config[HEAD_FACTS] = read_config(kept).get(HEAD_FACTS)
    return Checkpoint(folder, config, tensors, repo, revision, base_model(folder))


def local_path(path_or_repo: str | Path) -> Path | None:
    """Return the path that a user typed if something is there, `DEMO` for its name; None for any other name."""
    path = os.path.expanduser(path_or_repo)  # unlike pathlib's, it leaves the `~` of an unknown user
    if os.path.exists(path):
        return Path(path)
    return DEMO if path == DEMO.name else None


def read_config(folder: Path) -> dict[str, Any]:
    """Return the content of a folder's config.json.

    Raises:
        CheckpointError: there is no such file, or it is not a language model's.
    """
    file = folder / "config.json"
    if folder.suffix == ".gguf" and not folder.is_dir():
        remedy = "`mlxmtp attach MODEL --from FILE.gguf` takes its head"
        raise CheckpointError(f"{folder} is a GGUF file; {EXPECTED}; {remedy}")
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is a file; expected the folder of a model, or a Hub repo (owner/name)")
    if not file.exists():
        raise CheckpointError(no_config(str(folder), os.listdir(folder)))
    with readable(file):
        return parse_config(read_regular(file), str(file))


def visible_files(folder: Path, patterns: Iterable[str]) -> list[Path]:
    """Return what a model's folder has of these patterns, without folders and hidden files (macOS leaves `._*`).

    Raises:
        CheckpointError: a file is a FIFO, a device or another special file, which would block whoever reads it, or has
            more than `MAX_FILE_BYTES`.
    """
    found = {file for pattern in patterns for file in folder.glob(pattern) if not file.name.startswith(".")}
    files = [file for file in sorted(found) if file.exists() and not file.is_dir()]
    for file in files:
        if not file.is_file():
            raise CheckpointError(f"{file}: cannot be read (not a regular file)")
        if (nbytes := file.stat().st_size) > MAX_FILE_BYTES:
            raise CheckpointError(f"{file}: {size(nbytes)}, expected {size(MAX_FILE_BYTES)} at most")
    return files


def no_config(where: str, names: Iterable[str]) -> str:
    """Return the message for a folder or repo of files `names` without a config.json."""
    return f"{where}: no config.json; {contents(names)}; {EXPECTED}"


def check_tokenizer(where: str, names: Iterable[str]) -> None:
    """Check that a tokenizer is among a model's files.

    Raises:
        CheckpointError: there is no tokenizer.
    """
    if not set(TOKENIZERS).intersection(names):
        raise CheckpointError(f"{where}: no tokenizer; expected one of {', '.join(TOKENIZERS)}")


def parse_config(content: bytes, name: str) -> dict[str, Any]:
    """Parse a config.json, called `name` in messages.

    Raises:
        CheckpointError: it is not the configuration of a language model.
    """
    try:
        config = parse_json(content)
    except ValueError as error:
        raise CheckpointError(f"{name}: not valid JSON ({error})") from error
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise CheckpointError(f"{name}: no model_type; expected the configuration of a language model")
    if not isinstance(config.get("text_config", {}), dict):
        raise CheckpointError(f"{name}: its text_config is {config['text_config']!r}; expected an object")
    return config


def base_model(folder: Path) -> str | None:
    """Return the `base_model` of a folder's README.md, or None."""
    with suppress(OSError), open_regular(folder / "README.md") as stream:
        return card_base(stream.read(MAX_CARD_BYTES).decode(errors="replace"))
    return None


def card_base(card: str) -> str | None:
    """Return the `base_model` in a model card's YAML header: a repo, or the first of a list; or None."""
    found = re.search(r"\A---\n(?:.*\n)*?base_model:[ \t]*(?:\n[ \t]*-[ \t]*)?[\"']?([\w.-]+/[\w.-]+)", card)
    return found[1] if found else None
