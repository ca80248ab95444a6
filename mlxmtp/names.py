"""Names of models on the command line, checked without MLX or the Hub's client."""

import os
import re

from mlxmtp.errors import CheckpointError

DEMO = "demo"
"""The name of the bundled model, wherever there is no such file."""
REPO = re.compile(r"[\w-][\w.-]*/[\w.-]+")
GGUF = re.compile(r"[\w-][\w.-]*/.+\.gguf")
"""A file of a repo: `REPO/FILE.gguf`, in a folder or not."""


def check_name(repo: str) -> None:
    """Refuse a name that cannot be a repo's.

    Raises:
        CheckpointError: it is not of the form owner/name.
    """
    if not REPO.fullmatch(repo):
        raise CheckpointError(f"{repo}: no such folder; expected a model's folder or a Hub repo (owner/name)")


def check_model(name: str) -> None:
    """Refuse a name that is neither a path nor the demo, and cannot be a repo's or a GGUF file's of one.

    Raises:
        CheckpointError: as `check_name`.
    """
    if name and name != DEMO and not os.path.exists(os.path.expanduser(name)) and not GGUF.fullmatch(name):
        check_name(name)
