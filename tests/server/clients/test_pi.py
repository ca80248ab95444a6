"""pi (npm: @mariozechner/pi-coding-agent) works with the server, over each of its three protocols."""

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.grids import cases
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

PACKAGE = "@mariozechner/pi-coding-agent@0.73.1"
APIS = {
    "openai-completions": "/v1/chat/completions",
    "openai-responses": "/v1/responses",
    "anthropic-messages": "/v1/messages",
}
# by default Codex is the real client, and tests/server/test_client_bodies.py sends what pi sent
every_api = pytest.mark.parametrize("api", cases(APIS, default=[]))
Pi = Callable[[str], CompletedProcess[str]]

FILES = {"hello.py": 'print("déjà vu\\t<&>")\n', "empty.txt": ""}
WORK = (
    Answer(
        "Two files – both at once.",
        "I write them.",
        [("write", {"path": name, "content": content}) for name, content in FILES.items()],
    ),
    Answer("Does it run?", "", [("bash", {"command": "python3 hello.py > out.txt && cat out.txt"})]),
    Answer("It does.", "Both are there: déjà vu."),
)


@pytest.fixture(scope="module")
def program(installed: Path) -> str:
    return node.program(PACKAGE, ".bin/pi", installed)


@pytest.fixture
def pi(program: str, server: ServerProcess, home: Path, project: Path) -> Pi:
    """Run pi with one of its APIs to its end."""
    connect("pi", server, home)
    settings = home / ".pi" / "agent" / "models.json"
    found = json.loads(settings.read_text())
    provider = found["providers"]["mlxmtp"]
    assert (provider["api"], provider["baseUrl"]) == ("openai-completions", f"{server.url}/v1")

    def ask(api: str) -> CompletedProcess[str]:
        provider["api"] = api
        provider["baseUrl"] = server.url if api == "anthropic-messages" else f"{server.url}/v1"
        settings.write_text(json.dumps(found))
        model = provider["models"][0]["id"]
        options = ("--provider", "mlxmtp", "--model", model, "--print", "Write hello.py, and run it.")
        return node.run(program, *options, home=home, folder=project, PI_OFFLINE="1", PI_TELEMETRY="0")

    return ask


@every_api
def test_it_writes_files_runs_them_and_ends(
    api: str, pi: Pi, server: ServerProcess, scripted: Scripted, project: Path
) -> None:
    scripted.write(*WORK)
    before = answered(server, APIS[api])
    assert_done(pi(api), WORK[-1].text)
    assert {name: (project / name).read_text() for name in FILES} == FILES
    assert (project / "out.txt").read_text() == "déjà vu\t<&>\n"
    assert len(scripted.asked) == answered(server, APIS[api]) - before == len(WORK)
    assert_each_prompt_extends_the_last(scripted)
    for asked in scripted.asked:
        assert {tool["function"]["name"] for tool in asked.tools} == {"read", "bash", "edit", "write"}
        assert all(tool["function"]["parameters"]["required"] for tool in asked.tools)
        assert (asked.settings["max_tokens"], asked.settings["thinking"]) == (32_000, True), "pi asks for no more"


@pytest.mark.exhaustive
@pytest.mark.parametrize("api", APIS)
def test_it_tries_again_when_the_queue_is_full(api: str, pi: Pi, server: ServerProcess, scripted: Scripted) -> None:
    assert_tries_again_when_the_queue_is_full(lambda: pi(api), server, scripted, APIS[api])
