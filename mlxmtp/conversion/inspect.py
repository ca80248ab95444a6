"""What a checkpoint is, which head it has, and what mlxmtp does with it: from headers and the config alone."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxmtp.checkpoints import Checkpoint, HeadFiles, TensorInfo, find_head, open_checkpoint
from mlxmtp.checkpoints.checkpoint import parse_config
from mlxmtp.checkpoints.hub import RemoteRepo, cached
from mlxmtp.errors import CheckpointError, HeadError
from mlxmtp.heads import judge, norms_of, trunk_is_raw

_PACKED = (".scales", ".biases", "_scale_inv")


@dataclass(frozen=True)
class Weights:
    """A part of a checkpoint: bytes, the dtype of most of it, and how it is quantised, if it is."""

    nbytes: int
    dtype: str
    quantization: str | None
    files: list[str]


@dataclass(frozen=True)
class HeadReport:
    """A head: where it is kept ("shards", "side-car" or "drafter"), and whether its norms lack their offset.

    `norms` is "raw", "shifted", or None where only the values tell and they were not read; `source` is the model
    that it was fetched from, where the files say so.
    """

    place: str
    layers: int
    norms: str | None
    weights: Weights
    source: str | None


@dataclass(frozen=True)
class Report:
    """What `inspect` found. `speculates` and `because` are what `mlxmtp generate` does with it, and why."""

    name: str
    revision: str | None
    model_type: str
    format: str
    layers: int | None
    hidden_size: int | None
    vocab_size: int | None
    context: int | None
    trunk: Weights
    head: HeadReport | None
    speculates: bool
    because: str


def inspect(path_or_repo: str | Path) -> Report:
    """Read the headers of a folder's files, or by byte range those of a repo on the Hub that is not cached.

    Raises:
        CheckpointError: no such folder or repo, or not a whole model.
    """
    name = str(path_or_repo)
    folder = Path(path_or_repo).expanduser()
    if folder.exists() or (folder := cached(name) or folder).exists():
        return report(name, open_checkpoint(folder), local=True)
    remote = RemoteRepo.open(name)
    config = parse_config(remote.small("config.json"), f"{name}/config.json")
    checkpoint = Checkpoint(Path(name), config, remote.tensors(), remote.repo, remote.commit)
    return report(name, checkpoint, local=False)


def inspect_cache() -> list[Report | str]:
    """Every model in the Hub cache; for one that cannot be read, the reason."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repos = scan_cache_dir().repos
    except CacheNotFound:
        return []
    found: list[Report | str] = []
    for repo in sorted((repo for repo in repos if repo.repo_type == "model"), key=lambda repo: repo.repo_id):
        try:
            newest = max(repo.revisions, key=lambda revision: revision.last_modified)
            found.append(report(repo.repo_id, open_checkpoint(newest.snapshot_path), local=True))
        except (CheckpointError, ValueError) as error:
            found.append(f"{repo.repo_id}: {error}")
    return found


def report(name: str, checkpoint: Checkpoint, *, local: bool) -> Report:
    """Put together what is known of an open checkpoint; `local`: its files can be read."""
    text, tensors = checkpoint.text_config, checkpoint.tensors
    head, speculates, because = _judged(checkpoint)
    own = set(head.names) if head else set()
    trunk = {key: info for key, info in tensors.items() if key not in own}
    return Report(
        name=name,
        revision=checkpoint.revision,
        model_type=checkpoint.model_type,
        format="drafter" if head and head.place == "drafter" else _format(checkpoint),
        layers=text.get("num_hidden_layers"),
        hidden_size=text.get("hidden_size"),
        vocab_size=text.get("vocab_size"),
        context=text.get("max_position_embeddings"),
        trunk=_weights(trunk, checkpoint.config.get("quantization")),
        head=_head_report(head, checkpoint, local=local) if head else None,
        speculates=speculates,
        because=because,
    )


def _judged(checkpoint: Checkpoint) -> tuple[HeadFiles | None, bool, str]:
    """The head, if one is to be seen, and what loading decides of it."""
    try:
        head = judge(checkpoint)
    except HeadError as reason:
        try:
            return find_head(checkpoint.config, checkpoint.tensors), False, str(reason)
        except HeadError:
            return None, False, str(reason)
    return head, True, f"a Qwen MTP head in {'its shards' if head.place == 'shards' else 'a side-car'}"


def _format(checkpoint: Checkpoint) -> str:
    raw = trunk_is_raw(checkpoint.tensors)
    if raw is None:
        return "MLX" if "quantization" in checkpoint.config else "unknown"
    return "Hugging Face" if raw else "MLX"


def _head_report(head: HeadFiles, checkpoint: Checkpoint, *, local: bool) -> HeadReport:
    raw = trunk_is_raw(checkpoint.tensors)
    norms: str | None = head.norms or ("raw" if raw and head.place == "shards" else None)
    if local and head.place != "drafter":
        try:
            norms = norms_of(head, checkpoint.tensors)
        except HeadError as reason:
            norms = f"unclear: {reason}"
    weights = _weights(head.tensors, head.facts.get("quantization"))
    return HeadReport(head.place, head.layers, norms, weights, head.facts.get("source"))


def _weights(tensors: Mapping[str, TensorInfo], quantization: Any) -> Weights:
    sizes: Counter[str] = Counter()
    for name, info in tensors.items():
        if not name.endswith(_PACKED):
            sizes[info.dtype] += info.nbytes
    dtype = sizes.most_common(1)[0][0] if sizes else "none"
    files = sorted({info.file.name for info in tensors.values()})
    return Weights(sum(info.nbytes for info in tensors.values()), dtype, _packing(tensors, quantization), files)


def _packing(tensors: Mapping[str, TensorInfo], quantization: Any) -> str | None:
    """ "4-bit affine, groups of 64", from the config where it tells, else from what the tensors show."""
    if any(name.endswith("_scale_inv") for name in tensors):
        return "FP8, blocks of 128 x 128"
    packed = [name.removesuffix(".scales") for name in tensors if name.endswith(".scales")]
    if not packed:
        return None
    settings = dict(quantization) if isinstance(quantization, dict) else {}
    entries = [settings.get(path) for path in packed]
    ways = Counter(_way(entry if isinstance(entry, dict) else settings) for entry in entries)
    return " and ".join(way for way, _ in ways.most_common())


def _way(settings: Mapping[str, Any]) -> str:
    if "bits" not in settings:
        return "quantised"
    return f"{settings['bits']}-bit {settings.get('mode', 'affine')}, groups of {settings.get('group_size', '?')}"
