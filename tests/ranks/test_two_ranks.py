"""Two ranks of this machine over MLX's ring, as processes: the tokens, the messages, and what is left when one dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlxmtp.ranks import local_hosts
from tests.conftest import REPO
from tests.ranks.two_ranks import TOKENS
from tests.server.process import ServerProcess, children
from tests.worker.driving import is_gone, wait_until

pytestmark = pytest.mark.process

PATIENCE_S = 90
FOLLOWER = "mlxmtp.engine.follow"
LAYERS = 2
SSH = """#!/bin/sh
echo "$@" >> {log}
while [ "$1" != -- ]; do shift; done
exec sh -c "$3"
"""
"""In place of ssh: runs on this machine what would run on the other."""


@pytest.fixture(scope="module")
def model(raw_checkpoint: Callable[..., Path]) -> Path:
    """A recurrent layer and one that attends; with so few tokens a random head agrees with its trunk now and then."""
    return raw_checkpoint("qwen3_5", vocab=24, dtype="float32", layers=LAYERS, interval=LAYERS)


def test_tokens_and_messages_of_two_ranks(model: Path) -> None:
    """Drafts change neither tokens nor their right to a seed, and save two messages a layer for each pass they save."""
    command = [sys.executable, "-m", "tests.ranks.two_ranks", str(model)]
    ran = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert ran.returncode == 0, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout)
    turns: dict[str, Any] = found["turns"]
    for way in ("greedy", "seeded"):
        plain = turns[f"{way}, depth 0"]
        assert len(set(plain["tokens"])) > 5, "a collapsed reference would prove little"
        for name in (name for name in turns if name.startswith(way)):
            assert turns[name]["tokens"] == plain["tokens"], name
    assert 1 <= len(turns["sampled, depth 2"]["tokens"]) <= TOKENS, "ranks that drew other seeds would differ"
    for name, turn in turns.items():
        assert turn["messages"] == 2 * LAYERS * turn["passes"], name
    assert turns["greedy, depth 2"]["messages"] < turns["greedy, depth 0"]["messages"]
    assert found["layer_bytes"][0] < 0.6 * found["layer_bytes"][1], "a rank holds more than its part"
    assert (found["why_apart"], found["together"]) == (None, found["alone"])
    assert found["messages_together"] < 1.5 * turns["greedy, depth 0"]["messages"], "two turns share their messages"
    stopped = found["stopped"]
    assert stopped["tokens"][:TOKENS] == turns["greedy, depth 0"]["tokens"]
    assert stopped["reused"] > 0
    assert "/nowhere" in found["refused"]


@pytest.mark.exhaustive
def test_a_hosts_file_starts_the_other_rank_through_ssh(model: Path, tmp_path: Path) -> None:
    ssh, log, hosts = tmp_path / "ssh", tmp_path / "log", tmp_path / "hosts.json"
    ssh.write_text(SSH.format(log=log))
    ssh.chmod(0o755)
    hosts.write_text(json.dumps([{"ssh": name, "ips": ["127.0.0.1"]} for name in ("mac1", "mac2")]))
    command = [sys.executable, "-m", "mlxmtp", "generate", "--hosts", str(hosts), "--model", str(model), "--raw"]
    ran = subprocess.run(
        [*command, "--prompt", "1 2 3", "--max-tokens", "3", "--temp", "0", "--json"],
        cwd=REPO,
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["finish_reason"] == "length"
    (line,) = log.read_text().splitlines()
    assert "-o BatchMode=yes" in line
    assert f"-- mac2 if [ -d {REPO} ]; then cd {REPO}; fi; exec" in line


@pytest.mark.exhaustive
def test_a_rank_that_dies_is_reported_and_all_start_again(model: Path, tmp_path: Path) -> None:
    with ServerProcess(tmp_path, "--model", str(model), "-n", "2", "--temp", "0") as server:
        assert server.url
        assert "2 ranks (ring)" in server.log
        (worker,) = children(server.pid, "mlxmtp.worker")
        (other,) = children(worker, FOLLOWER)
        os.kill(other, signal.SIGKILL)
        assert wait_until(lambda: is_gone(worker), PATIENCE_S), "rank 0 waits for a rank that is gone"
        assert server.wait_for_line(r"warning: the engine died \(exit code 1: mlxmtp: rank 1 ended \(signal 9\)\)")
        assert wait_until(lambda: bool(children(server.pid, "mlxmtp.worker")), PATIENCE_S), "no other group"
        (worker,) = children(server.pid, "mlxmtp.worker")
        assert wait_until(lambda: bool(children(worker, FOLLOWER)), PATIENCE_S)
        (other,) = children(worker, FOLLOWER)
        body = json.dumps({"prompt": "1 2 3", "max_tokens": 3}).encode()
        request = urllib.request.Request(f"{server.url}/v1/completions", body, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
            assert answer.status == 200
        assert server.metrics()["engine_restarts_total"] == 1
        os.kill(worker, signal.SIGKILL)
        assert wait_until(lambda: is_gone(other), PATIENCE_S), "a rank outlives rank 0"


def test_decisions_through_mlx_itself() -> None:
    setup = json.dumps(local_hosts(2).environment())
    command = [sys.executable, "-m", "tests.ranks.collective"]
    ranks = [subprocess.Popen([*command, rank, setup], cwd=REPO) for rank in "01"]
    assert [rank.wait(PATIENCE_S) for rank in ranks] == [0, 0]


@pytest.mark.exhaustive
def test_parts_of_every_type_that_mlx_lm_divides(tmp_path: Path) -> None:
    setup = json.dumps(local_hosts(2).environment())
    command = [sys.executable, "-m", "tests.ranks.every_type"]
    ranks = [
        subprocess.Popen([*command, rank, str(tmp_path), setup], cwd=REPO, stdout=subprocess.PIPE) for rank in "01"
    ]
    outputs = [rank.communicate(timeout=400)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0]
    found: dict[str, Any] = json.loads(outputs[0])
    divided = {kind: one for kind, one in found.items() if "refused" not in one}
    assert len(divided) > 24
    assert all("cannot divide" in one["refused"] for one in found.values() if "refused" in one)
    for kind, one in divided.items():
        assert one["difference"] < 1e-4, (kind, one)  # sums in another order; logits are about 5
        assert one["same"] or not one["reversible"], (kind, one)
