"""Real processes that are killed or interrupted: what they leave does no harm, and the next run needs no help."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mlxmtp import GenerationOptions, load
from tests.comparing import contents
from tests.conftest import REPO
from tests.conversion.faults import (
    HEAD,
    HEAD_SHARD,
    ORIGINAL,
    STRIPPED,
    Attached,
    Run,
    attached,
    in_the_head,
    kept,
    leftovers,
)
from tests.grids import cases
from tests.hub import Fault, Hub

pytestmark = [pytest.mark.process, pytest.mark.exhaustive]

PATIENCE_S = 60

DRIVER = """
import os, signal, sys
import mlxmtp.checkpoints.writer as writer
from mlxmtp.cli import main

point, name = sys.argv[1:3]

def end():
    os.kill(os.getpid(), signal.SIGKILL)

def hook(event, args):
    if point == "rename" and event == "os.rename" and str(args[1]).endswith(name):
        end()

def third(weight):
    third.count += 1
    return end() if third.count > 3 else raw_bytes(weight)

third.count, raw_bytes = 0, writer.raw_bytes
if point == "write":
    writer.raw_bytes = third
sys.addaudithook(hook)
main(sys.argv[3:])
"""
"""Dies before a file or folder takes its name, or among the tensors of a file."""


@contextmanager
def started(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, *map(str, arguments)]
    with subprocess.Popen(command, cwd=REPO, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for(process: subprocess.Popen[str], happened: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not happened():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.02)


def held(hub: Hub, file: str, requests: int = 1) -> Callable[[], bool]:
    """Half of the answer to the latest of so many requests for a file is on its way; the rest is held back."""

    def check() -> bool:
        found = [
            one for one in hub.requests if one.path.startswith("/cdn/") and one.path.endswith(f"{ORIGINAL}/{file}")
        ]
        return len(found) == requests and found[-1].sent_bytes > 0

    return check


@pytest.mark.exhaustive
@pytest.mark.parametrize("phase", cases(["header", "head"], default=["head"]))
def test_attach_is_killed_while_it_reads_from_the_hub(
    models: Hub, data: Path, run: Run, whole: Attached, tmp_path: Path, phase: str
) -> None:
    cache = contents(tmp_path / "hf")
    slow = Fault(HEAD, "slow", value=PATIENCE_S)
    models.faults += [slow] if phase == "header" else in_the_head(slow)
    command = ("attach", STRIPPED, "--from", ORIGINAL, "--no-check")
    with started("-m", "mlxmtp", *command) as process:
        wait_for(process, held(models, HEAD_SHARD, 1 if phase == "header" else 3))
    assert not (data / "heads").exists()
    assert contents(tmp_path / "hf") == cache
    assert run(*command)[0] == 0
    assert attached(kept(models)) == whole
    assert not list((data / "partial").iterdir())
    assert contents(tmp_path / "hf") == cache


@pytest.mark.parametrize(
    ("point", "name"),
    cases(
        [("write", ""), ("rename", "config.json"), ("rename", "mtp.safetensors")],
        default=[("rename", "mtp.safetensors")],
    ),
)
def test_attach_is_killed_while_it_writes_into_a_folder(
    models: Hub, data: Path, trunk: Path, run: Run, whole: Attached, point: str, name: str
) -> None:
    tokens = load(trunk).generate([5, 9, 3], GenerationOptions(max_tokens=5)).tokens
    command = ("attach", trunk, "--from", ORIGINAL, "--no-check")
    with started("-c", DRIVER, point, name, *command) as process:
        assert process.wait(PATIENCE_S) == -signal.SIGKILL
    assert not (trunk / "mtp.safetensors").exists()
    assert load(trunk).generate([5, 9, 3], GenerationOptions(max_tokens=5)).tokens == tokens
    models.requests.clear()
    assert run(*command)[0] == 0
    assert attached(trunk) == whole
    assert not [one for one in models.requests if HEAD_SHARD in one.path][4:], "the head itself was there already"
    assert load(trunk).generate([5, 9, 3], GenerationOptions(max_tokens=5)).tokens == tokens
    assert not leftovers(trunk, data)
    assert not list((data / "partial").iterdir())


@pytest.mark.exhaustive  # by default, test_disk.py ends the process at each of its changes
@pytest.mark.parametrize("point", ["write", "rename"])
def test_attach_is_killed_while_it_writes_to_the_data_folder(
    models: Hub, data: Path, run: Run, whole: Attached, tmp_path: Path, point: str
) -> None:
    cache = contents(tmp_path / "hf")
    command = ("attach", STRIPPED, "--from", ORIGINAL, "--no-check")
    with started("-c", DRIVER, point, kept(models).name, *command) as process:
        assert process.wait(PATIENCE_S) == -signal.SIGKILL
    assert not kept(models).exists()
    assert contents(tmp_path / "hf") == cache
    assert run(*command)[0] == 0
    assert attached(kept(models)) == whole
    assert not leftovers(data)


@pytest.mark.parametrize("point", cases(["write", "rename"], default=["write"]))
def test_convert_is_killed_while_it_writes(
    original: Path, converted: dict[str, bytes], run: Run, tmp_path: Path, point: str
) -> None:
    dest = tmp_path / "dest"
    with started("-c", DRIVER, point, "dest", "convert", original, dest) as process:
        assert process.wait(PATIENCE_S) == -signal.SIGKILL
    assert not dest.exists()
    assert leftovers(tmp_path)
    assert run("convert", original, dest)[0] == 0
    assert contents(dest) == converted
    assert not leftovers(tmp_path)


@pytest.mark.exhaustive
@pytest.mark.parametrize("command", cases(["pull", "convert"], default=["convert"]))
def test_a_download_is_killed_in_the_middle_of_a_file(
    models: Hub, original: Path, run: Run, tmp_path: Path, command: str
) -> None:
    arguments = (command, ORIGINAL) if command == "pull" else (command, ORIGINAL, tmp_path / "dest")
    models.faults.append(Fault(HEAD, "slow", value=PATIENCE_S))
    with started("-m", "mlxmtp", *arguments) as process:
        wait_for(process, held(models, HEAD_SHARD))
    assert not (tmp_path / "dest").exists()
    assert run(*arguments)[0] == 0
    assert not leftovers(tmp_path)
    commit = models.repos[ORIGINAL].main
    snapshot = tmp_path / "hf" / "hub" / f"models--{ORIGINAL.replace('/', '--')}" / "snapshots" / commit
    assert contents(snapshot) == contents(original)
    if command == "convert":
        assert run("convert", snapshot, tmp_path / "other")[0] == 0
        assert contents(tmp_path / "dest") == contents(tmp_path / "other")


@pytest.mark.exhaustive
def test_attach_is_interrupted_while_it_fetches(
    models: Hub, data: Path, trunk: Path, run: Run, whole: Attached
) -> None:
    before = contents(trunk)
    models.faults += in_the_head(Fault(HEAD, "slow", value=PATIENCE_S))
    command = ("attach", trunk, "--from", ORIGINAL, "--no-check")
    with started("-m", "mlxmtp", *command) as process:
        wait_for(process, held(models, HEAD_SHARD, 3))
        process.send_signal(signal.SIGINT)
        told = process.communicate(timeout=PATIENCE_S)[1]
    assert process.returncode == 130
    assert "Traceback" not in told
    assert contents(trunk) == before
    assert run(*command)[0] == 0
    assert attached(trunk) == whole
    assert not list((data / "partial").iterdir())


@pytest.mark.exhaustive  # by default, tests/cli/test_pull.py interrupts a download
def test_pull_is_interrupted_in_the_middle_of_a_file(models: Hub, original: Path, run: Run, tmp_path: Path) -> None:
    models.faults.append(Fault(HEAD, "slow", value=PATIENCE_S))
    with started("-m", "mlxmtp", "pull", ORIGINAL) as process:
        wait_for(process, held(models, HEAD_SHARD))
        process.send_signal(signal.SIGINT)
        told = process.communicate(timeout=PATIENCE_S)[1]
    assert process.returncode == 130
    assert "Traceback" not in told
    assert run("pull", ORIGINAL)[0] == 0
    commit = models.repos[ORIGINAL].main
    snapshot = tmp_path / "hf" / "hub" / f"models--{ORIGINAL.replace('/', '--')}" / "snapshots" / commit
    assert contents(snapshot) == contents(original)
