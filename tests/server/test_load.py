"""Client processes at once, many disconnect early: every answer is the engine's own, and the queue ends empty."""

from pathlib import Path

import pytest

import mlxmtp
from tests.server.load.load import idle_failures, requests, run_load
from tests.server.serving import DEMO, ServerProcess

pytestmark = pytest.mark.process

CLIENTS, VISITS, SECONDS = 4, 6, 60.0


@pytest.mark.parametrize("seed", [1])
def test_answers_under_load_are_the_engines_own(seed: int, tmp_path: Path) -> None:
    asked, engine = requests(), mlxmtp.load()
    answers = [one.of_engine(engine) for one in asked]
    with ServerProcess(tmp_path, (*DEMO, "--queue", "2", "--cache-bytes", "20M")) as server:
        report = run_load(server, asked, answers, clients=CLIENTS, seed=seed, visits=VISITS, seconds=SECONDS)
        assert report.failures == [], server.log
        assert report.compared > CLIENTS
        assert report.left > CLIENTS
        assert idle_failures(server) == []
