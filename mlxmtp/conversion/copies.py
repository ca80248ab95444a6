"""The files of a model that a conversion copies."""

from collections.abc import Iterable
from pathlib import Path

from mlxmtp.checkpoints import Checkpoint
from mlxmtp.checkpoints.hub import origin
from mlxmtp.errors import CheckpointError


def check_own(checkpoint: Checkpoint, files: Iterable[Path]) -> list[Path]:
    """Return the files; refuse a link out of the model's folder, which would copy somebody's secrets into the result.

    The files of a snapshot in the Hub cache are links into the folder of their repo. Weights may be anywhere: their
    headers were read.

    Raises:
        CheckpointError: a file is such a link.
    """
    files, folder = list(files), checkpoint.folder.resolve()
    root = folder.parent.parent if origin(folder)[0] else folder
    weights = {info.file for info in checkpoint.tensors.values()}
    for file in files:
        if file not in weights and not file.resolve().is_relative_to(root):
            raise CheckpointError(
                f"{file} is a link to {file.resolve()}, outside of the model's folder; "
                "put a copy in its place if it belongs to the model, or remove it"
            )
    return files
