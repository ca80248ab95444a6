"""What a model, a file's name or a template says does not control the terminal that `mlxmtp` runs in."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mlxmtp.errors import PromptError
from mlxmtp.terminal import CONTROL
from tests.cli.conftest import assert_refused
from tests.cli.fake import STATS, Engine
from tests.test_terminal import Terminal

PIECES = ["so \x1b", "]0;mine\x07", " \x9b", "2J \u202eX", "\n"]
SHOWN = "so \\u001b]0;mine\\u0007 \\u009b2J \\u202eX\n"


def engine() -> Engine:
    """An engine whose model, name and head would control a terminal."""
    head_fails = replace(STATS, drafted_by_depth=(40, 40, 40), acceptance_by_depth=(0.0, 0.0, 0.0))
    return Engine(texts=PIECES, name="mo\x1b]0;name\x07del", head="qw\x9ben", stats=head_fails)


def test_an_answer_is_visible_on_a_terminal_and_exact_in_a_pipe(generate, monkeypatch: pytest.MonkeyPatch) -> None:
    assert generate(engine=engine()).out == "".join(PIECES)
    assert json.loads(generate("--json", engine=engine()).out)["text"] == "".join(PIECES)
    for options in ([], ["--json"]):
        out, err = Terminal(), Terminal()
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        assert generate(*options, engine=engine()).code == 0
        assert CONTROL.search(out.getvalue() + err.getvalue()) is None, options
        text = json.loads(out.getvalue())["text"] if options else out.getvalue()
        assert text == ("".join(PIECES) if options else SHOWN)
        assert options or "mo\\u001b]0;name\\u0007del" in err.getvalue()


def test_errors_are_one_visible_line(generate, cli, tmp_path: Path) -> None:
    folder = tmp_path / "a\x1b]0;b\x07\u202ec\nd"
    shown = "a\\u001b]0;b\\u0007\\u202ec d"
    assert_refused(cli("generate", "--prompt", "hi", "--model", folder), shown)
    assert_refused(cli("inspect", folder), shown)
    assert_refused(
        generate(engine=Engine(texts=[], ending=PromptError("the template says \x1b[2J"))), "says \\u001b[2J"
    )
    unknown = cli("generate", "--prompt", "hi", "--no-such\x1b[2J")
    assert (unknown.code, CONTROL.search(unknown.err)) == (2, None)


def test_a_description_of_a_folder_is_visible_on_a_terminal(raw: Path, tmp_path: Path, cli, monkeypatch) -> None:
    hostile = tmp_path / "x\x1b]0;y\x07"
    hostile.symlink_to(raw)
    assert str(hostile) in cli("inspect", hostile).out
    out = Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    assert cli("inspect", hostile).code == 0
    assert CONTROL.search(out.getvalue()) is None
    assert "x\\u001b]0;y\\u0007" in out.getvalue()
