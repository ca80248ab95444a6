"""A measurement of exactness is shown while a model loads, in every surface, and can be stopped."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from mlxmtp_tui.widgets.status import status_text

from mlxmtp import GenerationOptions, load
from mlxmtp.cli.progress import LoadProgress
from mlxmtp.exactness.probe import GPU_TOKENS
from mlxmtp.server import main as server_main
from mlxmtp.server.host import Host
from mlxmtp.targets import Target
from mlxmtp.worker.messages import CheckProgress, Failed, Generate, Load, Loaded, Stopped
from tests.scripted_engine import asynchronous
from tests.tui.states import in_state
from tests.worker.driving import serve


def test_the_worker_reports_each_pass_once_and_ends_where_it_is_stopped(
    raw_checkpoint: Callable[..., Path], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = str(raw_checkpoint("qwen3_5"))
    monkeypatch.setattr(Target, "max_fast_tokens", GPU_TOKENS)
    monkeypatch.setattr("mlxmtp.worker.serve.MIN_INTERVAL_S", 0.0)
    asked: list[int] = []
    stopped = Load(1, model)
    turn = Generate(2, [{"role": "user", "content": "a"}], GenerationOptions(max_tokens=1))
    *_, last, refused = serve(stopped, turn, stops=lambda one: one is stopped and len(asked.append(1) or asked) > 5)
    assert isinstance(last, Stopped)
    assert isinstance(refused, Failed), "no model is loaded"
    assert not list(data.rglob("*.json")), "a verdict of a stopped measurement"
    events = serve(Load(1, model))
    shown = [(event.done, event.total) for event in events if isinstance(event, CheckProgress)]
    assert [done for done, _ in shown] == list(range(1, len(shown) + 1))
    assert {total for _, total in shown} == {len(shown)}, "the total is known from the beginning"
    assert isinstance(events[-1], Loaded)
    again = serve(Load(1, model))
    assert not any(isinstance(event, CheckProgress) for event in again), "the verdict was kept"


def test_the_library_reports_it_and_an_exception_ends_it(raw_checkpoint: Callable[..., Path], data: Path) -> None:
    model, told = raw_checkpoint("qwen3_5"), []

    def ends(done: int, total: int) -> None:
        told.append((done, total))
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load(model, identity="strict", on_check=ends)
    assert [done for done, _ in told] == [1, 2, 3]
    assert not list(data.rglob("*.json"))


def test_the_command_line_and_the_server_write_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlxmtp.cli.progress.PATIENCE_S", 0.0)
    out = io.StringIO()
    with LoadProgress(out) as progress:
        progress.update(12, 60)
        progress._timer.join()
    assert out.getvalue() == "Checking exactness: 12 of 60 passes (20%)\n"
    with LoadProgress(out):
        pass
    assert out.getvalue().count("\n") == 1, "nothing where nothing is measured"
    host = Host(lambda: pytest.fail("started"), lambda id: Load(id), 1)
    host.on_check = server_main._CheckLines()
    for done in (12, 13):
        host._on_event(CheckProgress(1, done, 60))
    assert capsys.readouterr().err.count("checking exactness") == 1, "a line every 10 s"


@asynchronous
async def test_the_chat_shows_it_and_escape_stops_it() -> None:
    async with in_state("loading") as harness:
        assert not harness.chat.stop(), "weights are read in one go"
        harness.engine.say(CheckProgress(0, 12, 60))
        await harness.reach("loading")
        harness.chat.state.note_progress(CheckProgress(0, 12, 60))
        assert "checking exactness, 12 of 60 passes · esc stops" in status_text(harness.chat, folded=False)
        assert harness.chat.stop()
        harness.engine.say(Stopped(0))
        await harness.reach("choosing")
        assert harness.chat.loaded is None
