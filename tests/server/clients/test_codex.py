"""Codex (npm: @openai/codex) works with the server."""

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.server.clients import node
from tests.server.clients.checks import (
    answered,
    assert_done,
    assert_each_prompt_extends_the_last,
    assert_tries_again_when_the_queue_is_full,
    connect,
)
from tests.server.clients.scripted import Answer, Scripted
from tests.server.process import ServerProcess

pytestmark = pytest.mark.process

PACKAGE = "@openai/codex@0.169.0"
PATH = "/v1/responses"
ALONE = """
check_for_update_on_startup = false
[analytics]
enabled = false
[features]
plugins = false
"""
"""Settings that keep Codex from connecting to other hosts."""
NOBODY = "00000000-0000-7000-8000-000000000000"
Codex = Callable[[], CompletedProcess[str]]


def shell(command: str) -> tuple[str, dict[str, str]]:
    return "exec_command", {"cmd": command}


@pytest.fixture(scope="module")
def program(installed: Path) -> str:
    return node.program(PACKAGE, ".bin/codex", installed)


@pytest.fixture
def codex(program: str, server: ServerProcess, home: Path, project: Path) -> Codex:
    """Run Codex to its end."""
    connect("codex", server, home)
    (home / ".codex" / "config.toml").write_text(ALONE)
    options = ("--profile", "mlxmtp", "--sandbox", "danger-full-access", "--skip-git-repo-check")
    return lambda: node.run(program, "exec", *options, "Write hello.txt, and show it.", home=home, folder=project)


def results(scripted: Scripted) -> list[str]:
    """The tool results in the engine's last prompt."""
    return [part.split("</tool_response>")[0] for part in scripted.asked[-1].prompt.split("<tool_response>")[1:]]


def test_it_writes_a_file_shows_it_and_ends(
    codex: Codex, server: ServerProcess, scripted: Scripted, project: Path
) -> None:
    work = (
        Answer("Just one command.", "I write it.", [shell("echo 'déjà vu <&>' > hello.txt")]),
        Answer("Show it, and count it.", "", [shell("cat hello.txt"), shell("wc -l hello.txt")]),
        Answer("That is all.", "It is there: déjà vu."),
    )
    scripted.write(*work)
    before = answered(server, PATH)
    assert_done(codex(), work[-1].text)
    assert (project / "hello.txt").read_text() == "déjà vu <&>\n"
    assert len(scripted.asked) == answered(server, PATH) - before == len(work)
    assert_each_prompt_extends_the_last(scripted)
    _, shown, counted = results(scripted)
    assert "déjà vu <&>" in shown
    assert "1 hello.txt" in counted


@pytest.mark.exhaustive
def test_calls_of_tools_in_a_namespace(codex: Codex, scripted: Scripted) -> None:
    scripted.write(
        Answer("", "I end it.", [("close_agent", {"target": NOBODY}), shell("echo ended")]),
        Answer(text="There was none."),
    )
    assert_done(codex(), "There was none.")
    assert {"exec_command", "close_agent"} <= {tool["function"]["name"] for tool in scripted.asked[0].tools}
    of_namespace, of_shell = results(scripted)
    assert f"agent with id {NOBODY} not found" in of_namespace
    assert "ended" in of_shell
    assert_each_prompt_extends_the_last(scripted)


@pytest.mark.exhaustive
def test_it_tries_again_when_the_queue_is_full(codex: Codex, server: ServerProcess, scripted: Scripted) -> None:
    assert_tries_again_when_the_queue_is_full(codex, server, scripted, PATH)
