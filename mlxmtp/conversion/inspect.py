"""Describe a checkpoint, its head, and what mlxmtp does with it, from headers and the config alone."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mlxmtp.checkpoints import Checkpoint, HeadFiles, check_tokenizer, find_head, open_checkpoint, stated_context
from mlxmtp.checkpoints.checkpoint import MAX_CARD_BYTES, card_base, local_path, no_config, parse_config
from mlxmtp.checkpoints.gguf_files import choose_gguf, only_gguf
from mlxmtp.checkpoints.head_files import MLX_VLM, is_head_name, trunk_type
from mlxmtp.checkpoints.hub import cached, wanted_files
from mlxmtp.checkpoints.remote import RemoteRepo
from mlxmtp.conversion.gguf_report import report_gguf
from mlxmtp.conversion.originals import named_gguf
from mlxmtp.conversion.reports import CheckpointReport, HeadReport, Location, Support, Unreadable
from mlxmtp.conversion.weights import weights_of
from mlxmtp.errors import CheckpointError, HeadError
from mlxmtp.heads import NoHeadError, norms_of, resolve_head, trunk_is_raw
from mlxmtp.heads.families import family_of
from mlxmtp.heads.family import Family
from mlxmtp.targets import check_architecture

_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


def inspect(path_or_repo: str | Path) -> CheckpointReport:
    """Describe a folder, a GGUF file, a repo in the Hub cache, or one on the Hub, whose headers are read by byte range.

    Of several GGUF files, the one is described that `attach` would choose.

    Raises:
        CheckpointError: there is no such folder, file or repo, or it is not a complete model.
    """
    name = str(path_or_repo)
    if model := named_gguf(name):
        return report_gguf(model)
    if not name or local_path(name):
        return _report_folder(name, name, "folder")
    broken: CheckpointError | None = None
    if snapshot := cached(name):
        try:
            return _report_folder(name, snapshot, "cache")
        except CheckpointError as error:
            broken = error
    try:
        remote = RemoteRepo.open(name)
    except CheckpointError as error:
        raise broken or error from error
    if only_gguf(remote.sizes):
        return report_gguf(choose_gguf(remote, remote.repo, remote.commit))
    if broken and snapshot and all((snapshot / file).exists() for file in wanted_files(remote.sizes)):
        raise broken  # not only an unfinished download
    return _report_repo(remote)


def inspect_cache() -> list[CheckpointReport | Unreadable]:
    """Describe every model in the Hub cache, at the commit of `main`."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repos = scan_cache_dir().repos
    except CacheNotFound:
        return []
    models = sorted((repo for repo in repos if repo.repo_type == "model"), key=lambda repo: repo.repo_id)
    return [_report_cached(repo.repo_id, list(repo.revisions)) for repo in models]


def _report_cached(name: str, revisions: list[Any]) -> CheckpointReport | Unreadable:
    if not revisions:
        return Unreadable(name, "nothing of it is downloaded")
    folder = max(revisions, key=lambda revision: ("main" in revision.refs, revision.last_modified)).snapshot_path
    try:
        return _report_folder(name, folder, "cache")
    except (CheckpointError, OSError) as error:
        return Unreadable(name, str(error).replace(f"{folder}/", "").removeprefix(f"{folder}: "))


def _report_folder(name: str, folder: str | Path, where: Location) -> CheckpointReport:
    checkpoint = open_checkpoint(folder)
    return _report(name, where, checkpoint, os.listdir(checkpoint.folder))


def _report_repo(remote: RemoteRepo) -> CheckpointReport:
    if "config.json" not in remote.sizes:
        raise CheckpointError(no_config(remote.repo, remote.sizes))
    config = parse_config(remote.small("config.json"), f"{remote.repo}/config.json")
    tensors = remote.tensors()
    card = "README.md" in remote.sizes and not any(is_head_name(name, config) for name in tensors)
    start = remote.read("README.md", 0, min(remote.sizes["README.md"], MAX_CARD_BYTES)) if card else b""
    base = card_base(start.decode(errors="replace"))
    checkpoint = Checkpoint(Path(remote.repo), config, tensors, remote.repo, remote.commit, base)
    return _report(remote.repo, "hub", checkpoint, remote.sizes)


def _report(name: str, where: Location, checkpoint: Checkpoint, files: Iterable[str]) -> CheckpointReport:
    text, tensors = checkpoint.text_config, checkpoint.tensors
    support, because = _support(checkpoint, files)
    head, family = _visible_head(checkpoint)
    own = set(head.names) if head else set()
    trunk = {key: info for key, info in tensors.items() if key not in own}
    return CheckpointReport(
        name=name,
        where=where,
        revision=checkpoint.revision,
        model_type=checkpoint.model_type,
        format=_format(checkpoint),
        layers=text.get("num_hidden_layers"),
        hidden_size=text.get("hidden_size"),
        vocab_size=text.get("vocab_size"),
        context=stated_context(checkpoint.config),
        experts=next((text[key] for key in _EXPERTS if text.get(key)), None),
        trunk=weights_of(trunk, _quantization(checkpoint), checkpoint.folder),
        head=_head_report(head, family, checkpoint, local=where != "hub") if head else None,
        support=support,
        because=because,
    )


def _support(checkpoint: Checkpoint, files: Iterable[str]) -> tuple[Support, str]:
    """Return what loading the checkpoint results in, and why."""
    try:
        check_architecture(checkpoint)
        check_tokenizer(checkpoint.name, files)
        source = resolve_head(checkpoint)
    except NoHeadError as reason:
        return "plain", str(reason)
    except CheckpointError as reason:
        return "refused", str(reason)
    if source.files is None or source.repo:
        where = "in the Hub cache" if source.files else "fetched at the first use"
        return "speculates", f"its head is {source.repo}, found by the model's name, {where}"
    place = "the shards" if source.files.place == "shards" else "a side-car"
    others = ", ".join(file.name for file in source.files.unused)
    return "speculates", f"its head is in {place}" + (f"; the one in {others} is not used" if others else "")


def _visible_head(checkpoint: Checkpoint) -> tuple[HeadFiles | None, Family | None]:
    """Return the head, even if it cannot be used, and its family; None for the family of a head that is not read."""
    try:
        head = find_head(checkpoint.config, checkpoint.tensors)
    except HeadError:
        names = {name: name for name in checkpoint.tensors if is_head_name(name, checkpoint.config)}
        return HeadFiles({name: checkpoint.tensors[name] for name in names}, names, "shards", {}), None
    return head, family_of(trunk_type(checkpoint.model_type) or checkpoint.model_type)


def _format(checkpoint: Checkpoint) -> str | None:
    """Return the name of the layout; None: both layouts are the same."""
    if trunk_type(checkpoint.model_type):
        return "mlx-vlm drafter" if checkpoint.model_type.endswith(MLX_VLM) else None
    raw = trunk_is_raw(checkpoint.tensors)
    if raw is None:
        return "MLX" if "quantization" in checkpoint.config else None
    return "Hugging Face" if raw else "MLX"


def _quantization(checkpoint: Checkpoint) -> Any:
    """Return the quantization that the config states, by mlx-lm's key or another program's."""
    config, key = checkpoint.config, "quantization_config"
    return config.get("quantization") or config.get(key) or checkpoint.text_config.get(key)


def _head_report(head: HeadFiles, family: Family | None, checkpoint: Checkpoint, *, local: bool) -> HeadReport:
    norms: str | None = head.norms or ("raw" if trunk_is_raw(checkpoint.tensors) and head.place == "shards" else None)
    if family and family.norms_are_raw is None:
        norms = "plain"
    elif family and local and head.place != "drafter":
        try:
            norms = norms_of(head, checkpoint)
        except HeadError as reason:
            norms = f"unclear: {reason}"
    weights = weights_of(head.tensors, head.facts.get("quantization"), checkpoint.folder)
    name, source = family.name if family else None, head.facts.get("source")
    return HeadReport(name, head.place, head.layers, norms, weights, source)
