"""Copying by the platform's own program; elsewhere the terminal's escape sequence (OSC 52) has to do."""

import os
import shutil
import subprocess
import sys

TIMEOUT_S = 2.0
"""Seconds that the program has to take the text."""


def command() -> list[str] | None:
    """The program that copies its standard input; None without one. macOS's Terminal ignores OSC 52."""
    if sys.platform == "darwin":
        return ["pbcopy"]
    if os.environ.get("WAYLAND_DISPLAY") and shutil.which("wl-copy"):
        return ["wl-copy"]
    if os.environ.get("DISPLAY"):
        if shutil.which("xclip"):
            return ["xclip", "-selection", "clipboard"]
        if shutil.which("xsel"):
            return ["xsel", "--clipboard", "--input"]
    return None


def copy(text: str) -> bool:
    """Copy a text by the platform's program. Returns whether that worked."""
    program = command()
    if not program:
        return False
    try:
        # xclip goes on in the background and would keep a pipe open
        quiet = subprocess.DEVNULL
        subprocess.run(program, input=text.encode(), timeout=TIMEOUT_S, check=True, stdout=quiet, stderr=quiet)
    except (OSError, subprocess.SubprocessError):
        return False
    return True
