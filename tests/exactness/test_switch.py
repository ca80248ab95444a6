"""MLX's switch of the GPU's name: kept where it is exact and faster, set before MLX is imported, and else closed."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mlxmtp import cli, machine
from mlxmtp.cli import doctor
from mlxmtp.exactness import probe, switch
from mlxmtp.machine import GPU_SWITCH
from mlxmtp.worker.messages import Load, Warned
from tests.exactness.stand_in import backend
from tests.worker.driving import serve

NAME = "applegpu_g13s"


def found(promise: str, seconds: float, rows: int = 5) -> dict[str, Any]:
    return {"verdict": {"promise": promise, "rows": rows}, "pass_seconds": seconds}


def test_it_is_better_where_it_is_exact_and_faster() -> None:
    one_row = found("identical-one-row", 0.1)
    for with_switch, strict, expected in [
        (found("identical", 0.07), one_row, True),
        (found("identical", 0.096), one_row, False),
        (found("identical", 0.07, rows=2), one_row, False),
        (found("distribution", 0.01), one_row, False),
        (found("identical", 0.5), found("distribution", 0.01), True),
        (found("distribution", 0.5), found("distribution", 0.01), False),
        (found("identical", 0.0), found("identical-one-row", 0.0), False),
    ]:
        assert switch.is_better(with_switch, strict) == expected, (with_switch, strict)


def test_the_doctor_keeps_it_where_it_is_exact_and_faster(
    raw_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(raw_checkpoint("qwen3_5"))
    monkeypatch.setattr(probe, "FULL", probe.ProbePlan((32,)))
    monkeypatch.setattr("mlxmtp.engine.examine.TOKENS", 4)
    monkeypatch.setattr(machine, "older_gpu_name", lambda: NAME)
    asked: list[Any] = []
    monkeypatch.setattr(switch, "measured_with", lambda *given: asked.append(given) or answers.pop(0))
    answers: list[Any] = [{"identities": {"fast": found("identical", 1e-9)}}]
    with backend():
        assert cli.main(["doctor", "--json", "--model", model]) == 0
    shown = json.loads(capsys.readouterr().out)["switch"]
    assert (shown["name"], shown["used"], switch.kept_switch(model)) == (NAME, True, NAME), shown
    arguments: Any = SimpleNamespace(model=model, head=None, device=None, json=True)
    for answer in ({"identities": {"fast": found("distribution", 1e-9)}}, {"error": "no model"}):
        switch.keep_switch(model, NAME)
        answers.append(answer)
        report = {"identities": {"strict": found("identical-one-row", 0.1)}}
        doctor.examine_switch(arguments, report)
        assert (report["switch"]["used"], switch.kept_switch(model)) == (False, None), report
    assert asked == [(NAME, ["--model", model])] * 3


def test_the_other_process_is_started_with_it() -> None:
    prints = "import json, os, sys; print(json.dumps({}))"
    seen = "[os.environ['MLX_METAL_GPU_ARCH'], *sys.argv[1:]]"
    with pytest.raises(ValueError, match="no JSON object"):
        switch.measured_with(NAME, ["--model", "x"], [sys.executable, "-c", prints.format(seen)])
    program = [sys.executable, "-c", prints.format(f"dict(found={seen})")]
    shown = switch.measured_with(NAME, ["--model", "x"], program)
    assert shown == {"found": [NAME, "doctor", "--json", "--model", "x"]}
    assert GPU_SWITCH not in os.environ


def test_a_damaged_file_is_none(data: Path) -> None:
    assert switch.kept_switch("a/b") is None
    assert not list(data.rglob("switch")), "nothing is made by a look"
    switch.keep_switch("a/b", NAME)
    assert switch.kept_switch("a/b") == NAME
    assert switch.kept_switch("a/c") is None
    assert switch.kept_switch(None) is None
    (file,) = (data / "mlxmtp" / "switch").iterdir()
    for content in ("", '"applegpu_g17s"', '"x"', "5", "[", "null", '["applegpu_g13s"]'):
        file.write_text(content, "utf-8")
        assert switch.kept_switch("a/b") is None, content


@pytest.mark.exhaustive
def test_the_worker_sets_it_before_mlx_is_imported(
    raw_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = str(raw_checkpoint("qwen3_5"))
    switch.keep_switch(model, NAME)
    monkeypatch.delenv(GPU_SWITCH, raising=False)
    seen: list[str | None] = []
    monkeypatch.setattr(machine, "import_backend", lambda: seen.append(os.environ.get(GPU_SWITCH)))

    def warned(*commands: Load) -> list[str]:
        return [event.message for event in serve(*commands) if isinstance(event, Warned)]

    fast, strict = Load(1, model), Load(2, model, identity="strict")
    (message,) = warned(fast, strict)
    assert f"{GPU_SWITCH} works from an engine's start on" in message
    assert seen == [None, None], "MLX is here already"
    modules = {name: module for name, module in sys.modules.items() if name != "mlx.core"}
    with monkeypatch.context() as patch:
        patch.setattr("mlxmtp.worker.serve.sys", type("Sys", (), {"modules": modules}))
        patch.setenv(GPU_SWITCH, "")
        patch.delenv(GPU_SWITCH)
        assert not warned(strict)
        assert seen[-1] == NAME
        os.environ.pop(GPU_SWITCH)
    with monkeypatch.context() as patch:
        patch.setenv(GPU_SWITCH, "applegpu_g14g")
        assert not warned(strict), "the user's own stays"
        assert os.environ[GPU_SWITCH] == "applegpu_g14g"
