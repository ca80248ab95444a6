"""What `inspect` says of a checkpoint."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from mlxmtp.conversion.weights import Weights

Location = Literal["folder", "cache", "hub"]
"""A folder or file, the Hub cache, or the Hub itself, from which nothing is downloaded."""
Support = Literal["speculates", "plain", "head", "refused"]
"""What mlxmtp does with a model: speculate, decode plainly, take its head for another model, or refuse it."""


@dataclass(frozen=True)
class HeadReport:
    """The description of a head.

    Args:
        family: the name of its family; None: unknown to mlxmtp.
        place: "shards", "side-car", "drafter", or the blocks of a GGUF file.
        layers: its number of layers.
        norms: "raw" (they lack their offset), "shifted", "plain" (they have no offset), or None: only the values show
            it, and they were not read.
        weights: its size and format.
        source: the model that it was taken from, if the files say so.
    """

    family: str | None
    place: str
    layers: int
    norms: str | None
    weights: Weights
    source: str | None


@dataclass(frozen=True)
class CheckpointReport:
    """The description of a checkpoint.

    Args:
        name: folder or repo.
        where: the location of its files.
        revision: the commit of that repo.
        model_type: by which mlx-lm selects the architecture; of a GGUF file, llama.cpp's name of the architecture.
        format: "Hugging Face", "MLX" or "GGUF" layout, or "mlx-vlm drafter"; None: both layouts are the same.
        layers: sizes of the trunk; None: the config does not state it. Likewise `hidden_size`, `vocab_size`, `context`
            (tokens) and `experts`.
        trunk: size and format of the trunk.
        head: its head; None: it has none.
        support: what mlxmtp does with it.
        because: the reason.
    """

    name: str
    where: Location
    revision: str | None
    model_type: str
    format: str | None
    layers: int | None
    hidden_size: int | None
    vocab_size: int | None
    context: int | None
    experts: int | None
    trunk: Weights
    head: HeadReport | None
    support: Support
    because: str

    @property
    def speculates(self) -> bool:
        """Whether mlxmtp decodes it speculatively."""
        return self.support == "speculates"

    def as_json(self) -> dict[str, Any]:
        """Return plain values; `support` has the key `verdict`."""
        return {"verdict" if name == "support" else name: value for name, value in asdict(self).items()}


@dataclass(frozen=True)
class Unreadable:
    """A repo in the Hub cache that is not a model, or is incomplete."""

    name: str
    error: str

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)
