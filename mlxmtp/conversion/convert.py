"""Convert a raw checkpoint to an MLX folder: the trunk as mlx-lm converts it, the head in a side-car."""

import io
import json
import shutil
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map, tree_map_with_path
from mlx_lm.utils import quantize_model, save_config

from mlxmtp.checkpoints import HEAD_FACTS, SIDECAR, Checkpoint, open_checkpoint
from mlxmtp.checkpoints.checkpoint import KEPT_FILES, visible_files
from mlxmtp.checkpoints.writer import silent, write_model, write_safetensors
from mlxmtp.conversion.copies import check_own
from mlxmtp.conversion.sidecar import Sidecar, make_sidecar
from mlxmtp.conversion.sources import OnBytes
from mlxmtp.errors import OptionError
from mlxmtp.files import check_absent, check_outside, check_space, staged_folder
from mlxmtp.heads import NoHeadError, download_head, load_head, resolve_head
from mlxmtp.targets import TEXT_ONLY, Target, load_target

CONVERT_DTYPES = ("bfloat16", "float16", "float32")
MODES = {"affine": (64, 4), "mxfp4": (32, 4), "nvfp4": (16, 4), "mxfp8": (32, 8)}
"""Group size and bits of each mode: the defaults for affine, fixed for the others."""
AFFINE_BITS = (2, 3, 4, 5, 6, 8)
"""Bits per weight that mode affine allows."""
AFFINE_GROUPS = (32, 64, 128)
"""Weights per scale that mode affine allows."""
DEFAULT_HEAD_BITS = 8
"""Bits of the head of a quantised trunk; fewer lower its acceptance."""


@dataclass(frozen=True)
class Quantization:
    """How to quantise a trunk.

    Args:
        mode: one of `MODES`.
        bits: per weight; None: the mode's default.
        group_size: weights per scale; None: the mode's default.

    Raises:
        OptionError: the mode does not allow them.
    """

    mode: str = "affine"
    bits: int | None = None
    group_size: int | None = None

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise OptionError(f"mode is {self.mode!r}; expected one of {', '.join(MODES)}")
        group_size, bits = MODES[self.mode]
        if self.mode != "affine" and (self.bits not in (None, bits) or self.group_size not in (None, group_size)):
            raise OptionError(f"{self.mode} has {bits} bits in groups of {group_size}; leave both out")
        allowed = self.bits in (None, *AFFINE_BITS) and self.group_size in (None, *AFFINE_GROUPS)
        if self.mode == "affine" and not allowed:
            found = f"{self.bits or bits} bits in groups of {self.group_size or group_size}"
            raise OptionError(f"{found}; expected {', '.join(map(str, AFFINE_BITS))} bits in groups of 32, 64 or 128")


@dataclass(frozen=True)
class Converted:
    """The result of `convert`: the folder, bytes of trunk and head, and why there is no head, if there is none."""

    folder: Path
    trunk_bytes: int
    head_bytes: int
    no_head_because: str | None


def convert(
    source: str | Path,
    dest: Path,
    *,
    quantization: Quantization | None = None,
    head_bits: int | None = None,
    dtype: str | None = None,
    on_bytes: OnBytes = silent,
) -> Converted:
    """Write `dest`, a folder that stock mlx-lm loads as a plain model, and mlxmtp with its head.

    Tensors are made and written one at a time: memory holds the largest, not the model.

    Args:
        source: a folder or a Hub repo, which is downloaded first.
        dest: a folder that does not exist.
        quantization: of the trunk; None: leave it as it is.
        head_bits: 4, 8 or 16; None: 8 if the trunk is quantised here, else as it is stored.
        dtype: of weights that are not quantised; None: the config's.
        on_bytes: called with (bytes written, bytes in total).

    Raises:
        CheckpointError: the source cannot be loaded, or has a link to a file elsewhere; `dest` exists; or the disk is
            full.
        HeadError: the source has a head that cannot be run.
        OptionError: the trunk is quantised already.
    """
    check_absent(dest)
    checkpoint = open_checkpoint(source)
    check_outside(dest, checkpoint.folder)
    kept = check_own(checkpoint, visible_files(checkpoint.folder, KEPT_FILES))
    target = load_target(checkpoint, lazy=True)
    if quantization and "quantization" in target.config:
        raise OptionError(f"{source} is quantised already; convert from its original, or leave out --quantize")
    _cast(target, dtype)
    sidecar, reason = _head_of(checkpoint, target, head_bits or (DEFAULT_HEAD_BITS if quantization else None))
    config = _quantised(target, quantization)
    weights: dict[str, mx.array] = dict(tree_flatten(target.model.parameters()))
    trunk_bytes, head_bytes = sum(w.nbytes for w in weights.values()), sidecar.nbytes if sidecar else 0
    check_space(dest, trunk_bytes + head_bytes + sum(file.stat().st_size for file in kept))
    # or the module would hold all weights until the end
    target.model.update(tree_map(lambda _: mx.array([]), target.model.parameters()))
    done = 0

    def count(written: int) -> None:
        nonlocal done
        done += written
        on_bytes(done, trunk_bytes + head_bytes)

    with staged_folder(dest) as stage:
        write_model(stage, weights, count)
        _write_rest(stage, checkpoint, config, sidecar)
        for file in kept:
            copy = stage / file.relative_to(checkpoint.folder)
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, copy)
        if sidecar:
            write_safetensors(stage / SIDECAR, sidecar.weights, count)
    return Converted(dest, trunk_bytes, head_bytes, reason)


def _head_of(checkpoint: Checkpoint, target: Target, bits: int | None) -> tuple[Sidecar | None, str | None]:
    """Return the head, packed, or None and why there is no head."""
    try:
        source = download_head(resolve_head(checkpoint))
        head = load_head(checkpoint, target, source, lazy=True)
    except NoHeadError as reason:
        return None, str(reason)
    assert source.files is not None
    origin = (source.repo, source.revision) if source.repo else _origin(checkpoint)
    return make_sidecar(head, target, bits, *origin, source.files.facts.get("config")), None


def _origin(checkpoint: Checkpoint) -> tuple[str, str | None]:
    return checkpoint.repo or checkpoint.folder.name, checkpoint.revision


def _cast(target: Target, dtype: str | None) -> None:
    """Cast the trunk as mlx-lm's conversion does: to `dtype` or the config's, where the model allows it."""
    config = target.config
    wanted = dtype or config.get("torch_dtype") or config.get("dtype") or target.text_config.get("dtype")
    if wanted not in CONVERT_DTYPES:
        return
    if dtype:  # in the config too, or a later conversion would cast it back
        config["torch_dtype"] = dtype
        for part in (config, target.text_config):
            part.update({key: dtype for key in ("torch_dtype", "dtype") if key in part})
    kind, casts = getattr(mx, wanted), getattr(target.model, "cast_predicate", lambda _: True)

    def cast(name: str, weight: mx.array) -> mx.array:
        return weight.astype(kind) if casts(name) and mx.issubdtype(weight.dtype, mx.floating) else weight

    target.model.update(tree_map_with_path(cast, target.model.parameters()))


def _quantised(target: Target, quantization: Quantization | None) -> dict[str, Any]:
    """Quantise the trunk by mlx-lm's own function and predicates; return its new config."""
    config = dict(target.config)
    if "quantization" not in config:  # quantization_config is of a format that loading dequantised, such as FP8
        parts = [config, config["text_config"]] if "text_config" in config else [config]
        for part in parts:
            part.pop("quantization_config", None)
    if quantization is None:
        return config
    with redirect_stdout(io.StringIO()):  # mlx-lm prints
        _, config = quantize_model(target.model, config, quantization.group_size, quantization.bits, quantization.mode)
    return config


def _write_rest(stage: Path, checkpoint: Checkpoint, config: dict[str, Any], sidecar: Sidecar | None) -> None:
    config = {key: value for key, value in config.items() if key != HEAD_FACTS}
    config["model_type"] = TEXT_ONLY.get(config["model_type"], config["model_type"])
    if sidecar:
        config[HEAD_FACTS] = sidecar.facts
    save_config(config, stage / "config.json")
    (stage / "README.md").write_text(_card(checkpoint, config, sidecar))


def _card(checkpoint: Checkpoint, config: dict[str, Any], sidecar: Sidecar | None) -> str:
    base = f"base_model: {checkpoint.repo}\n" if checkpoint.repo else ""
    settings = json.dumps({k: v for k, v in config.get("quantization", {}).items() if not isinstance(v, dict)})
    head = f"Its MTP head is in `{SIDECAR}` ({sidecar.family})." if sidecar else "It has no MTP head."
    return (
        f"---\nlibrary_name: mlx\ntags: [mlx]\npipeline_tag: text-generation\n{base}---\n\n"
        f"Converted by mlxmtp from {_origin(checkpoint)[0]}; quantization: {settings}. {head}\n"
        "mlx-lm loads the folder as a plain model, mlxmtp decodes speculatively with the head.\n"
    )
