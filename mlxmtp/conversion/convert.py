"""A raw checkpoint to an MLX folder: the trunk as mlx-lm converts it, the head beside it."""

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

from mlxmtp.checkpoints import HEAD_FACTS, SIDE_CAR, Checkpoint, open_checkpoint
from mlxmtp.checkpoints.writer import silent, write_model, write_safetensors
from mlxmtp.conversion.side_car import SideCar, side_car
from mlxmtp.conversion.sources import OnBytes
from mlxmtp.errors import OptionError
from mlxmtp.files import check_absent, check_outside, check_space, staged_folder
from mlxmtp.heads import NoHeadError, download_head, load_head, resolve_head
from mlxmtp.targets import TEXT_ONLY, Target, load_target

DTYPES = ("bfloat16", "float16", "float32")
MODES = {"affine": (64, 4), "mxfp4": (32, 4), "nvfp4": (16, 4), "mxfp8": (32, 8)}
"""Group size and bits of each way to quantise: for affine the default, for the others the only ones."""
BITS, GROUPS = (2, 3, 4, 5, 6, 8), (32, 64, 128)
DEFAULT_HEAD_BITS = 8
"""Of a quantised trunk's head: see the table of acceptance by bits in the README."""
COPIED = ("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template*",
          "*.tiktoken", "*.model", "generation_config.json")  # fmt: skip


@dataclass(frozen=True)
class Packing:
    """How to quantise a trunk; None: the mode's default."""

    mode: str = "affine"
    bits: int | None = None
    group_size: int | None = None

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise OptionError(f"mode is {self.mode!r}; expected one of {', '.join(MODES)}")
        group_size, bits = MODES[self.mode]
        if self.mode != "affine" and (self.bits not in (None, bits) or self.group_size not in (None, group_size)):
            raise OptionError(f"{self.mode} has {bits} bits in groups of {group_size}; leave both out")
        if self.mode == "affine" and (self.bits not in (None, *BITS) or self.group_size not in (None, *GROUPS)):
            found = f"{self.bits or bits} bits in groups of {self.group_size or group_size}"
            raise OptionError(f"{found}; expected {', '.join(map(str, BITS))} bits in groups of 32, 64 or 128")


@dataclass(frozen=True)
class Converted:
    """What was written: bytes of trunk and head, and why there is no head where there is none."""

    folder: Path
    trunk_bytes: int
    head_bytes: int
    no_head_because: str | None


def convert(
    source: str | Path,
    dest: Path,
    *,
    packing: Packing | None = None,
    head_bits: int | None = None,
    dtype: str | None = None,
    on_bytes: OnBytes = silent,
) -> Converted:
    """Write `dest`, a folder that stock mlx-lm loads as a plain model and mlxmtp with its head.

    Tensors are made and written one at a time: memory holds the largest of them, not the model.

    Args:
        source: a folder or a Hub repo, which is downloaded first.
        packing: how to quantise the trunk; None keeps it as it is.
        head_bits: 4, 8 or 16; None: 8 beside a trunk quantised here, else as it is stored.
        dtype: of what is not quantised; None: the config's.

    Raises:
        CheckpointError: the source cannot be loaded, `dest` exists, or the disk has no room for it.
        HeadError: the source has a head, but not one that can be run.
        OptionError: the trunk is quantised already.
    """
    check_absent(dest)
    checkpoint = open_checkpoint(source)
    check_outside(dest, checkpoint.folder)
    target = load_target(checkpoint, lazy=True)
    if packing and "quantization" in target.config:
        raise OptionError(f"{source} is quantised already; convert from its original, or leave out --quantize")
    _cast(target, dtype)
    beside, reason = _head_of(checkpoint, target, head_bits or (DEFAULT_HEAD_BITS if packing else None))
    config = _quantised(target, packing)
    weights: dict[str, mx.array] = dict(tree_flatten(target.model.parameters()))
    trunk_bytes, head_bytes = sum(w.nbytes for w in weights.values()), beside.nbytes if beside else 0
    check_space(dest, trunk_bytes + head_bytes)
    target.model.update(tree_map(lambda _: mx.array([]), target.model.parameters()))  # or it would hold them all
    done = 0

    def count(written: int) -> None:
        nonlocal done
        done += written
        on_bytes(done, trunk_bytes + head_bytes)

    with staged_folder(dest) as stage:
        write_model(stage, weights, count)
        _write_rest(stage, checkpoint, config, beside)
        if beside:
            write_safetensors(stage / SIDE_CAR, beside.weights, count)
    return Converted(dest, trunk_bytes, head_bytes, reason)


def _head_of(checkpoint: Checkpoint, target: Target, bits: int | None) -> tuple[SideCar | None, str | None]:
    """The head, packed, or why there is none."""
    try:
        source = download_head(resolve_head(checkpoint))
        head = load_head(checkpoint, target, source, lazy=True)
    except NoHeadError as reason:
        return None, str(reason)
    assert source.files is not None
    origin = (source.repo, source.revision) if source.repo else _origin(checkpoint)
    return side_car(head, target, bits, *origin, source.files.facts.get("config")), None


def _origin(checkpoint: Checkpoint) -> tuple[str, str | None]:
    return checkpoint.repo or checkpoint.folder.name, checkpoint.revision


def _cast(target: Target, dtype: str | None) -> None:
    """As mlx-lm's conversion: the dtype asked for, or the config's, wherever the model lets it."""
    config = target.config
    wanted = dtype or config.get("torch_dtype") or config.get("dtype") or target.text_config.get("dtype")
    if wanted not in DTYPES:
        return
    if dtype:  # the config says so too, or a later conversion would go back to what it said
        config["torch_dtype"] = dtype
        for part in (config, target.text_config):
            part.update({key: dtype for key in ("torch_dtype", "dtype") if key in part})
    kind, casts = getattr(mx, wanted), getattr(target.model, "cast_predicate", lambda _: True)

    def cast(name: str, weight: mx.array) -> mx.array:
        return weight.astype(kind) if casts(name) and mx.issubdtype(weight.dtype, mx.floating) else weight

    target.model.update(tree_map_with_path(cast, target.model.parameters()))


def _quantised(target: Target, packing: Packing | None) -> dict[str, Any]:
    """Quantise the trunk by mlx-lm's own function and predicates; the config that goes with it."""
    config = dict(target.config)
    if "quantization" not in config:  # quantization_config is of a format that was undone on the way in, such as FP8
        parts = [config, config["text_config"]] if "text_config" in config else [config]
        for part in parts:
            part.pop("quantization_config", None)
    if packing is None:
        return config
    with redirect_stdout(io.StringIO()):  # mlx-lm prints
        _, config = quantize_model(target.model, config, packing.group_size, packing.bits, packing.mode)
    return config


def _write_rest(stage: Path, checkpoint: Checkpoint, config: dict[str, Any], beside: SideCar | None) -> None:
    config = {key: value for key, value in config.items() if key != HEAD_FACTS}
    config["model_type"] = TEXT_ONLY.get(config["model_type"], config["model_type"])
    if beside:
        config[HEAD_FACTS] = beside.facts
    save_config(config, stage / "config.json")
    for pattern in COPIED:
        for file in checkpoint.folder.glob(pattern):
            shutil.copyfile(file, stage / file.name)
    (stage / "README.md").write_text(_card(checkpoint, config, beside))


def _card(checkpoint: Checkpoint, config: dict[str, Any], beside: SideCar | None) -> str:
    base = f"base_model: {checkpoint.repo}\n" if checkpoint.repo else ""
    packing = json.dumps({k: v for k, v in config.get("quantization", {}).items() if not isinstance(v, dict)})
    head = f"Its MTP head is in `{SIDE_CAR}` ({beside.family})." if beside else "It has no MTP head."
    return (
        f"---\nlibrary_name: mlx\ntags: [mlx]\npipeline_tag: text-generation\n{base}---\n\n"
        f"Converted by mlxmtp from {_origin(checkpoint)[0]}; quantization: {packing}. {head}\n"
        "mlx-lm loads the folder as a plain model, mlxmtp decodes speculatively with the head.\n"
    )
