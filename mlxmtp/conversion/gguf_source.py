"""A head in a GGUF file, as a source that a head is taken from."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx

from mlxmtp.checkpoints import HeadFiles, TensorInfo
from mlxmtp.checkpoints.attached import partial_folder
from mlxmtp.checkpoints.gguf_files import GgufModel
from mlxmtp.checkpoints.gguf_header import GgufHeader
from mlxmtp.checkpoints.gguf_names import ARCHITECTURES, first_block, head_names
from mlxmtp.checkpoints.gguf_values import check_values, write_values, written_bytes
from mlxmtp.checkpoints.remote import RemoteRepo
from mlxmtp.conversion.sources import OnBytes, Source, array_of, local_copies
from mlxmtp.errors import HeadError
from mlxmtp.files import check_space, explain_full_disk, open_regular, remove_abandoned, unfinished_file

SAMPLE = {
    "blk.0.attn_norm.weight": "model.layers.0.input_layernorm.weight",
    "output_norm.weight": "model.norm.weight",
}
"""Small tensors by which two trunks are compared, and their names in other checkpoints; files of a head have one."""
SIZES = {
    "embedding_length": ("hidden_size",),
    "attention.head_count": ("num_attention_heads",),
    "attention.head_count_kv": ("num_key_value_heads",),
    "attention.key_length": ("head_dim",),
    "expert_count": ("num_experts", "n_routed_experts"),
}
"""Entries of the metadata after the architecture's name, and keys of config.json for the same number."""
ASSISTANTS = ("gemma4-", "gemma4_")
"""Begin the names of the architectures of Gemma 4's assistants, which are models of their own."""
LATENT = ("attention.head_count_kv", "attention.key_length")
"""Entries that are those of the latents, not of the heads, where the architecture has latent attention."""


@dataclass(frozen=True)
class GgufSource(Source):
    """A GGUF file with a head.

    Args:
        model: the file.
    """

    model: GgufModel

    def read(self, name: str) -> mx.array:
        info = self.tensors[name]
        return array_of(self.model.files.read(str(info.file), info.start, info.stop), info)

    @contextmanager
    def local_head(self, on_bytes: OnBytes) -> Iterator[HeadFiles]:
        """Yield the head in a local safetensors file, dequantised, under the names inside the head."""
        remote = self.model.files if isinstance(self.model.files, RemoteRepo) else None
        copies: Any = nullcontext(self.head.tensors)
        if remote:
            copies = local_copies(remote, self.name, self.head.tensors, on_bytes)
        folder = partial_folder()
        folder.mkdir(parents=True, exist_ok=True)
        remove_abandoned(folder)
        with copies as tensors, unfinished_file(folder, "head.safetensors") as file:
            check_space(file, written_bytes(self.head))
            with explain_full_disk(file):
                files = write_values(
                    replace(self.head, tensors=tensors), self._read_copy if remote else self._read, file
                )
            yield files

    def _read(self, tensor: TensorInfo, start: int, stop: int) -> bytes:
        return self.model.files.read(str(tensor.file), tensor.start + start, tensor.start + stop)

    def _read_copy(self, tensor: TensorInfo, start: int, stop: int) -> bytes:
        with open_regular(tensor.file) as stream:
            stream.seek(tensor.start + start)
            return stream.read(stop - start)


def gguf_source(model: GgufModel, model_type: str) -> GgufSource:
    """Return the head of a GGUF file as a source.

    Args:
        model_type: of the trunk that it is for.

    Raises:
        HeadError: the file has no head, or one that is not read.
    """
    tensors = model.head
    if model.header.architecture.startswith(ASSISTANTS):
        expected = "expected the original assistant, such as google/gemma-4-E4B-it-assistant"
        raise HeadError(f"{model.name} is a Gemma 4 assistant, whose configuration a GGUF file lacks; {expected}")
    if not tensors:
        raise HeadError(f"{model.name} has no MTP head (no nextn tensors); {_declared(model.header)}")
    architecture = model.header.architecture
    names = head_names(architecture, tensors, model.name)
    head = HeadFiles({name: tensors[name] for name in names}, names, "shards", {})
    check_values(head, model.name)
    trunks = ARCHITECTURES[architecture].trunks
    kind = next((trunk for trunk in trunks if trunk == model_type.removesuffix("_text")), trunks[0])
    config = trunk_sizes(model.header, first_block(tensors)) | {"model_type": kind}
    sample = {hf: model.header.tensors[name] for name, hf in SAMPLE.items() if name in model.header.tensors}
    return GgufSource(model.name, model.revision, config, sample, head, None, model)


def trunk_sizes(header: GgufHeader, layers: int) -> dict[str, Any]:
    """Return the trunk's sizes by the keys of config.json, as far as the metadata state them.

    Args:
        layers: the number of the trunk's layers.
    """
    latent = header.number(f"{header.architecture}.attention.kv_lora_rank") is not None
    sizes: dict[str, Any] = {"num_hidden_layers": layers}
    for entry, keys in SIZES.items():
        if not (latent and entry in LATENT):
            sizes |= dict.fromkeys(keys, header.number(f"{header.architecture}.{entry}"))
    if embedding := header.tensors.get("token_embd.weight"):
        sizes["vocab_size"] = embedding.shape[0]
    return sizes


def _declared(header: GgufHeader) -> str:
    if header.number(f"{header.architecture}.nextn_predict_layers"):
        return "its metadata declare one, which may be in a file of its own (mtp-*.gguf)"
    return "name a file, or the original model, that has one"
