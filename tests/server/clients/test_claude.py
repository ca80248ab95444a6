"""Claude Code (npm: @anthropic-ai/claude-code) works with the server."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.server.clients import node
from tests.server.clients.checks import answered, assert_done, connect
from tests.server.clients.scripted import Answer, Scripted
from tests.server.process import ServerProcess

pytestmark = pytest.mark.process

PACKAGE = "@anthropic-ai/claude-code@2.1.332"
PROGRAM = "@anthropic-ai/claude-code-*/claude"
"""The package for the machine brings it; `.bin/claude` becomes it by an install script, which is not run here."""
PATH = "/v1/messages"
Claude = Callable[[str], CompletedProcess[str]]


@pytest.fixture(scope="module")
def program(installed: Path) -> str:
    return node.program(PACKAGE, PROGRAM, installed)


@pytest.fixture
def claude(program: str, server: ServerProcess, home: Path, project: Path) -> Claude:
    """Run Claude Code to its end."""
    connect("claude", server, home)
    options = ("--settings", str(home / ".claude" / "mlxmtp.json"), "--bare", "--allowedTools", "Read", "Bash")
    quiet = {"CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1", "DISABLE_AUTOUPDATER": "1"}
    return lambda prompt: node.run(program, "--print", prompt, *options, home=home, folder=project, **quiet)


def picture() -> bytes:
    """A PNG of 8 x 8 grey pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes([0, *[128] * 8]) * 8)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.exhaustive  # by default tests/server/test_client_bodies.py has its requests
def test_a_picture_in_the_history_does_not_end_the_session(
    claude: Claude, server: ServerProcess, scripted: Scripted, project: Path
) -> None:
    (project / "screen.png").write_bytes(picture())
    hello = project / "hello.txt"
    work = (
        Answer("Look first.", "I look at it.", [("Read", {"file_path": str(project / "screen.png")})]),
        Answer(
            "Write.", "", [("Bash", {"command": "echo 'd\u00e9j\u00e0 vu <&>' > hello.txt", "description": "write"})]
        ),
        Answer("Show.", "", [("Bash", {"command": "cat hello.txt", "description": "show it"})]),
        Answer("That is all.", "It is there."),
    )
    scripted.write(*work)
    before = answered(server, PATH)
    assert_done(claude("Look at screen.png, and write hello.txt."), work[-1].text)
    assert hello.read_text() == "d\u00e9j\u00e0 vu <&>\n"
    assert answered(server, PATH) - before == len(scripted.asked) == len(work)
    assert "d\u00e9j\u00e0 vu <&>" in scripted.asked[-1].prompt.split("<tool_response>")[-1]
