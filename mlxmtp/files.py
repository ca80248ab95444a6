"""Files that are written whole or not at all."""

import os
from contextlib import suppress
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Put a text in place of what was there, in one step; the folder is made.

    Raises:
        OSError: the disk is full or takes nothing; what was there before is still there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    stage = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        stage.write_text(text, encoding="utf-8")
        os.replace(stage, path)
    finally:
        with suppress(OSError):
            stage.unlink()
