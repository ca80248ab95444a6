"""The display of a long prefill."""

import io
import time

import pytest

from mlxmtp.cli import progress
from mlxmtp.cli.progress import PrefillProgress
from tests.cli.fake import Engine


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PATIENCE_S", 0.01)


def test_a_short_prefill_shows_nothing():
    out = Terminal()
    with PrefillProgress(out) as shown:
        shown.update(10, 10)
    assert out.getvalue() == ""


@pytest.mark.usefixtures("impatient")
def test_a_terminal_line_is_updated_in_place_and_erased():
    out = Terminal()
    with PrefillProgress(out) as shown:
        wait_for(out, "Reading the prompt ...")
        shown.update(2048, 8192)
        shown.update(4096, 8192)
    lines = out.getvalue().split("\r\x1b[K")
    assert lines[2:] == [
        "Reading the prompt: 2048 of 8192 tokens (25%)",
        "Reading the prompt: 4096 of 8192 tokens (50%)",
        "",
    ]
    shown.update(8192, 8192)
    assert out.getvalue().split("\r\x1b[K") == lines


@pytest.mark.usefixtures("impatient")
def test_lines_are_sparse_elsewhere(monkeypatch):
    out = io.StringIO()
    with PrefillProgress(out) as shown:
        wait_for(out, "Reading the prompt ...")
        shown.update(2048, 8192)
        assert out.getvalue().count("\n") == 1
        monkeypatch.setattr(progress, "PAUSE_S", 0.0)
        shown.update(4096, 8192)
    assert out.getvalue().splitlines()[1:] == ["Reading the prompt: 4096 of 8192 tokens (50%)"]


@pytest.mark.usefixtures("impatient")
def test_generate_shows_it_on_standard_error(generate):
    ran = generate(engine=Engine(prefill=((512, 2048), (2048, 2048)), pause_s=0.1))
    assert ran.out == "Hello, world\n"
    assert ran.err.startswith("Reading the prompt ...\n\nmodel ")


def wait_for(out: io.StringIO, text: str) -> None:
    deadline = time.monotonic() + 10
    while text not in out.getvalue() and time.monotonic() < deadline:
        time.sleep(0.001)
    assert text in out.getvalue()
