"""Signals and closed pipes, in a process with a scripted engine that would run for long."""

import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.cli.conftest import ROOT

pytestmark = pytest.mark.process


@pytest.fixture
def endless() -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.cli.fake", "generate", "--prompt", "hi"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, text=True, stdout=pipe, stderr=pipe) as process:
        yield process
        process.kill()


def test_control_c_stops_and_keeps_what_came(endless):
    assert endless.stdout.readline() == "word 0\n"
    endless.send_signal(signal.SIGINT)
    _, err = endless.communicate(timeout=60)
    assert endless.returncode == 130
    assert "(interrupted)" in err
    assert "Traceback" not in err


def test_a_closed_pipe_ends_it_quietly(endless):
    assert endless.stdout.readline() == "word 0\n"
    endless.stdout.close()
    assert endless.stderr.read() == ""
    assert endless.wait(timeout=60) == 141
