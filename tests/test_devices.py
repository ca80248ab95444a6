"""One switch for the device: options, the library, the worker; the tests' own pin and markers."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import pytest
from mlxmtp_tui.options import ChatOptions

from mlxmtp import OptionError, cli, load, machine
from mlxmtp.engine import depth_store
from mlxmtp.engine.store import guarantee_file
from mlxmtp.server.main import ServeOptions
from mlxmtp.worker.messages import Failed, Load
from tests import conftest, row_invariance
from tests.conftest import REPO
from tests.conversion import test_formats
from tests.decoding import test_loop
from tests.engine import test_equal_to_plain
from tests.exactness import test_probe
from tests.exactness.stand_in import backend, wide
from tests.targets import test_every_model, test_rollback, test_window
from tests.worker.driving import serve

COMMANDS = ("chat", "serve", "generate", "bench", "report", "doctor", "inspect")
ALONE: dict[str, list[str]] = {"chat": [], "serve": [], "bench": [], "doctor": []}
ABSENT = "MLX finds no gpu on this machine"


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> list[mx.DeviceType]:
    """The devices that MLX was given, on a machine that has both."""
    given: list[mx.DeviceType] = []
    monkeypatch.setattr(mx, "device_count", lambda _: 1)
    monkeypatch.setattr(mx, "set_default_device", given.append)
    return given


def commands() -> dict[str, argparse.ArgumentParser]:
    (found,) = (action for action in cli.parser()._actions if isinstance(action, argparse._SubParsersAction))
    return found.choices


def test_every_command_that_loads_a_model_has_the_switch() -> None:
    switched = {name for name, parser in commands().items() if "--device" in parser._option_string_actions}
    assert switched == set(COMMANDS)


def test_the_device_is_set_before_the_model_is_read(
    devices: list[mx.DeviceType], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    nowhere = ["--model", str(tmp_path)]
    lines = [["generate", "--prompt", "a", *nowhere], ["bench", *nowhere], ["doctor", *nowhere]]
    for device, kind in (("cpu", mx.cpu), ("gpu", mx.gpu)):
        for line in lines:
            assert cli.main([*line, "--device", device]) == 2, line
            assert devices, line
            assert set(devices) == {kind}, (line, device)
            devices.clear()
        (failed,) = serve(Load(1, "/nowhere/at/all", device=device))
        assert isinstance(failed, Failed)
        assert devices == [kind], device
        devices.clear()
    for line in lines:
        assert cli.main(line) == 2
    assert not devices, "without the switch MLX's default stays"
    capsys.readouterr()


def test_the_worker_the_chat_and_the_server_pass_it_on() -> None:
    for options in (ServeOptions(device="gpu").load(1), ChatOptions(device="gpu").load_command(1)):
        assert replace(options, parallel=1) == Load(1, device="gpu")


@pytest.mark.skipif(bool(mx.device_count(mx.gpu)), reason="there is a GPU")
def test_a_device_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for command, rest in {"generate": ["--prompt", "a"], "inspect": ["demo", "--check"], **ALONE}.items():
        line = [command, *rest]
        assert cli.main([*line, "--device", "gpu"]) == 2, line
        errors = capsys.readouterr().err
        assert ABSENT in errors, line
        assert errors.count("\n") == 1, line
    with pytest.raises(OptionError, match="expected one of cpu, gpu"):
        load(device="tpu")  # type: ignore[arg-type]
    (failed,) = serve(Load(1, device="gpu"))
    assert isinstance(failed, Failed)
    assert (failed.kind, failed.message) == ("refused", f"{ABSENT}; leave out --device gpu")


def test_what_is_kept_is_kept_for_its_device(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = load(REPO / "tests" / "trained" / "glm4_moe").facts
    cpu = guarantee_file(facts, "fast"), depth_store.file_for(facts, "fast"), facts.model_key()
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.cpu, 1))
    monkeypatch.setattr(mx, "device_info", lambda _: {})
    gpu = guarantee_file(facts, "fast"), depth_store.file_for(facts, "fast"), facts.model_key()
    assert not set(cpu) & set(gpu)


def test_memory_is_the_devices_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    host = machine.memory_bytes()
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    monkeypatch.setattr(mx, "device_info", lambda _: {"total_memory": 24 << 30, "free_memory": 23 << 30})
    assert machine.memory_bytes() == 24 << 30
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    assert machine.memory_bytes() == host, "Apple's GPUs share the machine's"


def test_what_is_told_of_a_device_is_on_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"device_name": "Apple M4", "memory_size": 1 << 34, "max_recommended_working_set_size": 1 << 33}
    more = {"uuid": "GPU-1", "pci_bus_id": "0", "free_memory": 3, "serial": "C02"}
    monkeypatch.setattr(mx, "device_info", lambda *_: told | more)
    monkeypatch.setenv("MLX_METAL_FAST_SYNCH", "1")
    found = machine.backend()
    assert found["device_info"] == told
    assert found["wired_limit_bytes"] == 1 << 33
    assert found["switches"] == {"MLX_METAL_FAST_SYNCH": "1"}


def test_a_mac_that_mlx_does_not_run_on_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.system_fault() == "" or sys.platform == "darwin"
    needs = "MLX needs macOS 14 or later and a Python for arm64; found macOS"
    for release, architecture, said in (
        ("14.0", "arm64", ""),
        ("26.1", "arm64", ""),
        ("13.6.1", "arm64", f"{needs} 13.6.1, arm64"),
        ("15.1", "x86_64", f"{needs} 15.1, x86_64"),
        ("10.16", "arm64", ""),  # told to a Python that was built for macOS 10
    ):
        monkeypatch.setattr("platform.mac_ver", lambda release=release: (release, ("", "", ""), ""))
        monkeypatch.setattr("platform.machine", lambda architecture=architecture: architecture)
        assert machine.system_fault() == said, release
        error = machine.missing_backend(ModuleNotFoundError("No module named 'mlx'", name="mlx"))
        assert said in str(error), release
        assert ("pip install" in str(error)) is (not said), release


# -- the tests' own pin and markers -------------------------------------------------------------------------------


def test_children_are_pinned_to_the_cpu(tmp_path: Path) -> None:
    """By a stand-in for MLX that says what it was told."""
    (tmp_path / "mlx").mkdir()
    (tmp_path / "mlx" / "__init__.py").touch()
    (tmp_path / "mlx" / "core.py").write_text("cpu = 'the CPU'\nset_default_device = print\n")
    for path in ({}, {"PYTHONPATH": str(tmp_path)}):
        ran = subprocess.run(
            [sys.executable, "-P", "-c", "import mlx.core"],
            env={**os.environ, **path},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (ran.returncode, ran.stdout) == (0, "the CPU\n" if path else ""), ran.stderr
    assert mx.default_device() == mx.Device(mx.cpu)


def test_this_process_is_pinned_before_mlx_lm_makes_its_stream() -> None:
    """mlx-lm's stream, on which `generate_step` runs, is one of the device at its import."""
    text = Path(conftest.__file__).read_text(encoding="utf-8")
    assert text.index("mx.set_default_device(mx.cpu)") < text.index("from mlxmtp")
    fresh = "import mlx.core as mx, pytest; assert 'mlx_lm' not in __import__('sys').modules"
    assert subprocess.run([sys.executable, "-c", fresh], timeout=60).returncode == 0


def test_tests_that_compare_rows_are_found() -> None:
    """By what they name, also in the functions that they call."""
    for test in (
        test_equal_to_plain.test_random_checkpoints,
        test_equal_to_plain.test_the_demo,
        test_equal_to_plain.test_after_a_stop_and_a_continuation,
        test_loop.test_every_acceptance_count_leaves_what_plain_decoding_leaves,
        test_every_model.test_every_model_type_of_mlx_lm_runs_here,
        test_rollback.test_commit_leaves_the_rows_that_it_keeps,
        test_window.test_decoding_goes_on_from_a_commit,
        test_probe.test_the_demo,
        test_formats.test_the_turn_is_exact,
    ):
        assert row_invariance.compares_rows(test), test
    assert not row_invariance.compares_rows(test_every_command_that_loads_a_model_has_the_switch)


def test_exact_tests_are_never_skipped_on_linux() -> None:
    if sys.platform == "linux":
        assert row_invariance.rows_differ() == ""
        assert row_invariance.probed() == "", "on Linux's CPU this is a bug"


def test_exact_tests_are_skipped_with_the_reason_of_the_probe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    with backend(wide):
        reason = row_invariance.probed()
    assert reason.startswith("rows are not computed as one row is (float32): logits differ by up to")


def test_what_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """By marker, for a machine with and without Metal, whose CPU does and does not compute rows alike."""
    for metal, reason, marks, skipped in [
        (False, "", {"exact"}, ""),
        (False, "", {"metal"}, "no Metal GPU"),
        (True, "rows differ", {"exact"}, "rows differ"),
        (True, "rows differ", {"process"}, ""),
        (True, "rows differ", {"exact", "metal"}, ""),
        (False, "rows differ", {"exact", "metal"}, "no Metal GPU"),
    ]:
        monkeypatch.setattr(conftest, "rows_differ", lambda reason=reason: reason)
        monkeypatch.setattr(mx.metal, "is_available", lambda metal=metal: metal)
        item: Any = SimpleNamespace(get_closest_marker=lambda name, marks=marks: name in marks)
        try:
            conftest.pytest_runtest_setup(item)
            found = ""
        except pytest.skip.Exception as skip:
            found = str(skip)
        assert found == skipped, (metal, reason, marks)
