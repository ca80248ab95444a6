"""Copying: the platform's own command where there is one, else the terminal's escape sequence (OSC 52)."""

import os
import shutil
import subprocess
import sys

PATIENCE_S = 2.0


def command() -> list[str] | None:
    """The program that takes text on standard input; macOS's Terminal ignores OSC 52."""
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


def copied(text: str) -> bool:
    """Whether the platform's command took the text."""
    program = command()
    if not program:
        return False
    try:
        # xclip stays behind to serve the text, and would hold an open pipe
        quiet = subprocess.DEVNULL
        subprocess.run(program, input=text.encode(), timeout=PATIENCE_S, check=True, stdout=quiet, stderr=quiet)
    except (OSError, subprocess.SubprocessError):
        return False
    return True
