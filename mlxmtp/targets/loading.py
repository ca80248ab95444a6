"""Load a target through mlx-lm, and convert the layouts that mlx-lm does not read."""

import itertools
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from functools import partial
from shlex import quote
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.utils import _get_classes, load_model

from mlxmtp.checkpoints import Checkpoint, dequantise_fp8, text_config
from mlxmtp.checkpoints.head_files import is_head_name, trunk_type
from mlxmtp.checkpoints.names import unwrapped
from mlxmtp.checkpoints.tensors import WEIGHTS, sidecar_tensors
from mlxmtp.errors import CheckpointError, is_device_failure, is_out_of_memory
from mlxmtp.targets.patches.indexers import share_indexers
from mlxmtp.targets.shard import shard
from mlxmtp.targets.target import Target

TEXT_ONLY = {"qwen3_5_text": "qwen3_5", "qwen3_5_moe_text": "qwen3_5_moe"}
"""Model types of text-only checkpoints, and the vision-language types whose modules in mlx-lm load them."""
PARTS = 16
"""Parts of a model that are read one after the other, each in parallel: a sixteenth is held twice at most."""
_SIZES = ("hidden_size", "vocab_size", "num_hidden_layers")
_COUNT = re.compile(r"(?:\w+_)?(?:num|n)_(?:\w+_)?(?:layers?|loops)|\w+_pattern|hc_mult")
"""Keys of counts by which mlx-lm makes lists, of caches too, where it builds no module for each."""
_READABLE = {"F32", "F16", "BF16", "C64", "BOOL", "F8_E4M3", "F8_E8M0"}
_READABLE |= {f"{sign}{bits}" for sign in "IU" for bits in (8, 16, 32, 64)}
_MAX_SIZE = 1 << 31
"""MLX counts the rows of an array in 32 bits."""
_MODULES_A_TENSOR = 64
"""Most modules that a model has for each tensor of its files. Most have 1 or 2; DBRX, whose files hold the experts of a
layer in three tensors, has 8."""


def load_target(checkpoint: Checkpoint, *, lazy: bool = False, group: Any = None) -> Target:
    """Load the trunk of a checkpoint.

    Args:
        lazy: read each weight when it is first used; otherwise read all of them now.
        group: MLX's group of ranks; this rank keeps its part of the layers. None: all of them.

    Raises:
        CheckpointError: mlx-lm does not know the architecture, tensors are missing or have another shape, or the layers
            cannot be divided by the group.
    """
    check_architecture(checkpoint)
    try:
        classes = partial(_model_classes, in_sidecar=_sidecar_names(checkpoint), tensors=len(checkpoint.tensors))
        model, config = load_model(
            checkpoint.folder, lazy=True, model_config=_tied(checkpoint), get_model_classes=classes
        )
        if group:
            shard(model, group, checkpoint.model_type)
        if not lazy:
            materialise(model)
        return Target(model, config)
    except Exception as error:  # mlx-lm's models raise whatever they please on a config that they do not expect
        if isinstance(error, MemoryError) or is_out_of_memory(error) or is_device_failure(error):
            raise
        raise CheckpointError(f"{checkpoint.folder}: {_reason(error)}") from error


def check_architecture(checkpoint: Checkpoint) -> None:
    """Check that mlx-lm supports the model type, that the config's sizes are possible, and that MLX reads the tensors.

    Raises:
        CheckpointError: one of these does not hold, or the checkpoint is a head without a trunk.
    """
    name, kind = checkpoint.name, checkpoint.model_type
    if trunk_type(kind):
        fetch = f"mlxmtp attach MODEL --from {quote(name)}"
        raise CheckpointError(f"{name}: a head without its model; `{fetch}` gives it to one, --head lends it")
    try:
        if not re.fullmatch(r"[\w-]+", kind):  # no path to another module
            raise ValueError(kind)
        with redirect_stdout(sys.stderr):  # a module without a package that it needs prints so, and ends the process
            _model_classes(checkpoint.config, frozenset(), 0)
    except SystemExit as error:
        raise CheckpointError(f"{name}: mlx-lm's {kind!r} needs a Python package that is not installed") from error
    except (ValueError, AttributeError, TypeError) as error:  # some of mlx-lm's modules are no models
        raise CheckpointError(f"{name}: mlx-lm has no model type {kind!r}; another version of it may") from error
    _check_sizes(checkpoint)
    unknown = ((tensor, info.dtype) for tensor, info in checkpoint.tensors.items() if info.dtype not in _READABLE)
    for tensor, dtype in unknown:
        raise CheckpointError(f"{name}: {tensor} is {dtype}, which MLX does not read; expected another conversion")


def _check_sizes(checkpoint: Checkpoint) -> None:
    """Check the sizes by which mlx-lm builds the model, before it spends time and memory on impossible ones."""
    text = checkpoint.text_config
    for key in _SIZES:
        if (size := text.get(key)) is not None and (type(size) is not int or not 0 < size < _MAX_SIZE):
            raise CheckpointError(f"{checkpoint.name}: its config has {key} {size!r}; expected 1 to {_MAX_SIZE - 1}")
    if found := impossible_count(checkpoint.config, len(checkpoint.tensors)):
        raise CheckpointError(f"{checkpoint.name}: {found}")


def impossible_count(config: Mapping[str, Any], tensors: int) -> str:
    """Return what is wrong with a config that counts more layers, or passes through them, than its files hold tensors.

    Empty: nothing. Parts of the config, as `text_config`, are searched too.
    """
    for key, value in config.items():
        if isinstance(value, Mapping) and (found := impossible_count(value, tensors)):
            return found
        if _COUNT.fullmatch(key) and isinstance(value, int | float) and value > tensors:
            return f"its config has {key} {value}, and the files hold {tensors} tensors; expected at most as many"
    return ""


def _tied(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what to change in the config: `tie_word_embeddings`, stated beside `text_config`, holds of the text model.

    The files have the last word: mlx-lm's default stays if they contradict the statement.
    """
    text, key = checkpoint.config.get("text_config"), "tie_word_embeddings"
    tied = not any(name.endswith("lm_head.weight") for name in checkpoint.tensors)
    if text is None or key in text or checkpoint.config.get(key) is not tied:
        return {}
    return {"text_config": {**text, key: tied}}


def materialise(module: nn.Module) -> None:
    """Evaluate a module's arrays in `PARTS`, so that the sources of one are freed before the next is read.

    Those that are no parameters, such as the frequencies of a scaled RoPE, are among them: only the thread that made a
    lazy array can evaluate it.
    """
    arrays = []
    for part in module.modules():
        held: Any = tree_flatten([*part.values(), *vars(part).values()], is_leaf=nn.Module.is_module)
        arrays += [array for _, array in held if isinstance(array, mx.array)]
    most = sum(array.nbytes for array in arrays) // PARTS
    waiting: list[mx.array] = []
    for array in arrays:
        if sum(one.nbytes for one in waiting) + array.nbytes > most:
            mx.eval(waiting)
            waiting = []
        waiting.append(array)
    mx.eval(waiting)


def _sidecar_names(checkpoint: Checkpoint) -> frozenset[str]:
    """Return the names of tensors in those side-cars that mlx-lm reads, and would take for the trunk's."""
    files = {name: checkpoint.tensors[name].file for name in sidecar_tensors(checkpoint.tensors)}
    return frozenset(n for n, file in files.items() if file.parent == checkpoint.folder and file.match(WEIGHTS))


def _model_classes(config: dict[str, Any], in_sidecar: frozenset[str], tensors: int) -> tuple[type[nn.Module], type]:
    kind = config["model_type"]
    model, args = _get_classes({**config, "model_type": TEXT_ONLY.get(kind, kind)})

    own_sanitize: Any = getattr(model, "sanitize", None)  # several models read their files as they are

    class Model(model):  # type: ignore[misc, valid-type]
        def __init__(self, args: Any) -> None:
            with _modules_for(tensors):
                super().__init__(args)
            self._unread = share_indexers(self, text_config(config).get("indexer_types"))

        def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
            # mlx-lm keeps the heads of some models, and stacks experts of one layout per family
            names = [name for name in weights if not is_head_name(name, config) and name not in in_sidecar]
            own = {unwrapped(name): name for name in names}
            for name in names:
                if own[unwrapped(name)] != name:
                    raise ValueError(f"the files hold {unwrapped(name)} twice ({name}, {own[unwrapped(name)]})")
            read = {name: weights[stored] for name, stored in own.items() if not name.startswith(self._unread)}
            trunk = dequantise_fp8(read)
            return stack_experts(own_sanitize(self, trunk) if own_sanitize else trunk, self)

    return Model, args


@contextmanager
def _modules_for(tensors: int) -> Iterator[None]:
    """Bound the modules that are built by the tensors of the files: no count in a config, whatever its name, is huge.

    Raises:
        ValueError: in place of building more.
    """
    build, count, most = nn.Module.__init__, itertools.count(1), _MODULES_A_TENSOR * tensors

    def build_one(module: nn.Module) -> None:
        if next(count) > most:
            found = f"its config describes a model of more than {most} modules, and the files hold {tensors} tensors"
            raise ValueError(f"{found}; expected at most {_MODULES_A_TENSOR} for each tensor")
        build(module)  # type: ignore[no-untyped-call]

    nn.Module.__init__ = build_one  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.__init__ = build  # type: ignore[method-assign]


def stack_experts(weights: dict[str, mx.array], model: nn.Module | None = None) -> dict[str, mx.array]:
    """Convert experts stored one by one, or fused (`gate_up_proj`), to mlx-lm's stacked `switch_mlp`.

    mlx-lm reads some families in one of the layouts only; checkpoints of both exist. Other names are unchanged.

    Args:
        model: modules of it that are themselves called `mlp.experts` keep their weights.

    Raises:
        ValueError: an expert is missing, or has another shape than the others.
    """
    modules = {name for name, _ in model.named_modules()} if model else set()
    out: dict[str, mx.array] = {}
    single: dict[str, dict[int, mx.array]] = {}
    for name, value in weights.items():
        stem, found, rest = name.partition(".mlp.experts.")
        stacked = f"{stem}.mlp.switch_mlp."
        part, _, tensor = rest.partition(".")
        if not found or f"{stem}.mlp.experts" in modules:
            out[name] = value
        elif part == "gate_up_proj":
            for half, values in zip(("gate_proj", "up_proj"), mx.split(value, 2, axis=-2), strict=True):
                out[f"{stacked}{half}.{tensor or 'weight'}"] = mx.contiguous(values)
        elif part == "down_proj":
            out[f"{stacked}{part}.{tensor or 'weight'}"] = value
        else:
            single.setdefault(stacked + tensor, {})[int(part)] = value
    for name, experts in single.items():
        for e in range(len(experts)):
            if e not in experts:
                raise ValueError(f"{name}: expert {e} is missing")
            if experts[e].shape != experts[0].shape:
                raise ValueError(f"{name}: expert {e} is {experts[e].shape}, and expert 0 {experts[0].shape}")
        out[name] = mx.stack([experts[e] for e in range(len(experts))])
    return out


def _reason(error: Exception) -> str:
    text = " ".join(line.strip() for line in str(error).strip().splitlines()[:3])
    if isinstance(error, ValueError | RuntimeError | OSError | CheckpointError):
        return text or type(error).__name__
    return f"mlx-lm cannot build the model that its config.json describes ({type(error).__name__}: {text})"
