"""Describe a GGUF file and its head from its header alone."""

from collections.abc import Mapping
from shlex import quote

from mlxmtp.checkpoints import TensorInfo
from mlxmtp.checkpoints.gguf_files import GgufModel
from mlxmtp.checkpoints.gguf_names import first_block
from mlxmtp.checkpoints.gguf_values import WHOLE
from mlxmtp.checkpoints.remote import RemoteRepo
from mlxmtp.conversion.gguf_source import GgufSource, gguf_source, trunk_sizes
from mlxmtp.conversion.reports import CheckpointReport, HeadReport, Location, Support
from mlxmtp.conversion.weights import Weights
from mlxmtp.errors import HeadError
from mlxmtp.heads.families import family_of
from mlxmtp.heads.family import Family

SHOWN_TYPES = 3
"""Types of quantised tensors that are named, those of most bytes first."""


def report_gguf(model: GgufModel) -> CheckpointReport:
    """Describe a GGUF file, and say whether its head can be attached to a model in MLX's format."""
    header, tensors = model.header, model.head
    try:
        source = gguf_source(model, "")
        family = family_of(source.config["model_type"])
        support, because = _support(model, source, family)
    except HeadError as error:
        family, support, because = None, "refused", str(error)
    blocks = header.number(f"{header.architecture}.block_count")
    layers = first_block(tensors) if tensors else blocks
    sizes = trunk_sizes(header, layers or 0)
    return CheckpointReport(
        name=model.name,
        where=_where(model),
        revision=model.revision,
        model_type=header.architecture or "unknown",
        format="GGUF",
        layers=layers,
        hidden_size=sizes["hidden_size"],
        vocab_size=sizes.get("vocab_size"),
        context=header.number(f"{header.architecture}.context_length"),
        experts=sizes["num_experts"],
        trunk=gguf_weights({name: info for name, info in header.tensors.items() if name not in tensors}),
        head=_head_report(tensors, family, layers or 0) if tensors else None,
        support=support,
        because=because,
    )


def gguf_weights(tensors: Mapping[str, TensorInfo]) -> Weights:
    """Summarise tensors by their types: "Q8_0, Q4_K", and the type of most bytes that are not quantised."""
    sizes: dict[str, int] = {}
    for info in tensors.values():
        sizes[info.dtype] = sizes.get(info.dtype, 0) + info.nbytes
    order = sorted(sizes, key=lambda dtype: -sizes[dtype])
    packed = [dtype for dtype in order if dtype not in WHOLE]
    shown = ", ".join(packed[:SHOWN_TYPES]) + (" and others" if len(packed) > SHOWN_TYPES else "")
    files = sorted({str(info.file) for info in tensors.values()})
    return Weights(sum(sizes.values()), next((d for d in order if d in WHOLE), None), shown or None, files)


def _support(model: GgufModel, source: GgufSource, family: Family | None) -> tuple[Support, str]:
    """Return what can be done with the head, and why."""
    kind, layers = source.config["model_type"], source.head.layers
    if family is None:
        return "refused", f"no MTP head family for model type {kind!r} yet"
    if family.layers is not None and layers > family.layers:
        return "refused", f"the head has {layers} MTP layers; {family.layers} supported"
    among = f"; of {len(model.others) + 1} GGUF files it has the least quantised head" if model.others else ""
    return "head", f"`mlxmtp attach MODEL --from {quote(model.name)}` takes it for an MLX model of this trunk{among}"


def _where(model: GgufModel) -> Location:
    if isinstance(model.files, RemoteRepo):
        return "hub"
    return "cache" if model.revision else "folder"


def _head_report(tensors: Mapping[str, TensorInfo], family: Family | None, first: int) -> HeadReport:
    blocks = sorted({int(name.split(".")[1]) for name in tensors})
    place = f"block {first}" if len(blocks) == 1 else f"blocks {first} to {blocks[-1]}"
    plain = family is not None and family.norms_are_raw is None
    return HeadReport(
        family.name if family else None, place, len(blocks), "plain" if plain else None, gguf_weights(tensors), None
    )
