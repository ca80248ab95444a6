"""Options of `serve` and `chat` reach the server and the chat; bad ones are refused before a model is loaded."""

from __future__ import annotations

from typing import Any

import pytest

from mlxmtp.server import main as server
from mlxmtp.server.main import ServeOptions
from tests.cli.conftest import assert_refused


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[ServeOptions]:
    """The options of servers that would have loaded a model."""
    found: list[ServeOptions] = []

    def run(coroutine: Any) -> None:
        found.append(coroutine.cr_frame.f_locals["options"])
        coroutine.close()

    monkeypatch.setattr(server.asyncio, "run", run)
    return found


def test_sampling_reaches_the_server(main_, started):
    wanted = "--temp 0.6 --top-p 0.9 --top-k 40 --min-p 0.1"
    assert main_("serve", "--port", "0", *wanted.split()).code == 0
    [options] = started
    assert options.sampling == {"temperature": 0.6, "top_p": 0.9, "top_k": 40, "min_p": 0.1}


@pytest.mark.parametrize(
    ("options", "found", "expected"),
    [
        (["--temp", "-1"], "-1.0", "at least 1e-6"),
        (["--temp", "nan"], "nan", "at least 1e-6"),
        (["--top-p", "7"], "7.0", "(0, 1]"),
        (["--top-k", "-1"], "-1", "at least 0"),
        (["--min-p", "3"], "3.0", "[0, 1]"),
        (["--max-body", "0"], "--max-body is 0", "at least 1 byte"),
        (["--cors", "nonsense"], "'nonsense'", "SCHEME://HOST"),
        (["--cors", "http://localhost:3000/"], "localhost:3000/", "without a path"),
        (["--api-key", ""], "--api-key is empty", "expected ASCII"),
        (["--api-key", " a"], "--api-key is", "without spaces around it"),
        (["--api-key", "schl\u00fcssel"], "--api-key is of characters", "expected ASCII"),
        (["--cache-dir", ""], "--cache-dir is empty", "expected a folder"),
    ],
)
def test_options_that_cannot_be_are_refused(main_, started, options, found, expected):
    ran = main_("serve", "--port", "0", *options)
    assert ran.code == 2
    assert found in ran.err
    assert expected in ran.err
    assert "schl" not in ran.err
    assert started == []


def test_requests_at_once(main_, started):
    for value, expected in (("auto", None), ("1", 1), ("64", 64)):
        assert main_("serve", "--port", "0", "--parallel", value).code == 0
        assert (started[-1].parallel, started[-1].load(1).parallel) == (expected, expected), value
    assert main_("serve", "--port", "0").code == 0
    assert started.pop().parallel is None
    for value in ("0", "-1", "1000", "x", "1.5", ""):
        ran = main_("serve", "--port", "0", f"--parallel={value}")
        assert (ran.code, value in ran.err) == (2, True), value
        assert "expected a whole number" in ran.err, value
    assert len(started) == 3


def test_options_that_can_be(main_, started):
    origins = ["*", "null", "http://localhost:3000", "https://app.example", "http://[::1]:80", "tauri://localhost"]
    cors = [part for origin in origins for part in ("--cors", origin)]
    assert main_("serve", "--port", "0", "--api-key", "a b/c+d==", "--temp", "0", "--max-body", "1", *cors).code == 0
    [options] = started
    assert (options.origins, options.api_key, options.max_body) == (tuple(origins), "a b/c+d==", 1)


@pytest.mark.parametrize("option", [["--temp", "-1"], ["--top-p", "0"], ["--top-k", "-2"], ["--seed", "-1"]])
def test_chat_refuses_sampling_that_cannot_be(main_, option):
    assert_refused(main_("chat", "--model", "demo", *option), option[1], "expected")


@pytest.mark.parametrize("command", [["generate", "--prompt", "x"], ["chat"], ["serve", "--port", "0"], ["bench"]])
@pytest.mark.parametrize("option", ["--head", "--draft-vocab"])
def test_what_is_for_a_head_is_refused_without_one(main_, started, command, option):
    assert_refused(main_(*command, "--no-mtp", option, "demo"), f"{option} is for a head", "leave one out")
    assert started == []
