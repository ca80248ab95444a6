"""Text of models, files and clients on a terminal. What would control the terminal is shown there as text."""

import re
import sys
from typing import TextIO

CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]|\r(?!\n)")
"""C0 without tab and line end, DEL, C1, and the embeddings, overrides and isolates that reorder a line. Each character
is replaced by itself, so a sequence that comes in pieces is no exception."""


def visible(text: str) -> str:
    """Return a text with its control characters written as `\\u001b`. JSON in this form means the same."""
    return CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def say(text: str, end: str = "\n", out: TextIO | None = None) -> None:
    """Write a text to `out`, or else to standard output: `visible` on a terminal, exact in a pipe or a file."""
    out = out or sys.stdout
    out.write((visible(text) if out.isatty() else text) + end)
    out.flush()
