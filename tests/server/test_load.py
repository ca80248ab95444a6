"""Client processes at once, many disconnect early: every answer is the engine's own, and the queue ends empty."""

from pathlib import Path

import pytest

import mlxmtp
from tests.grids import cases
from tests.server.load.load import idle_failures, requests, run_load
from tests.server.load.strange import strange_requests
from tests.server.process import ServerProcess
from tests.worker.driving import SMALL_MODEL

pytestmark = [pytest.mark.process, pytest.mark.exhaustive]

VISITS = 6
"""Of each client."""


@pytest.mark.parametrize(
    ("model", "parallel", "clients"),
    cases(
        [("small", 1, 4), ("small", 4, 4), ("small", 4, 8), ("demo", 1, 4), ("demo", 4, 8)],
        default=[("small", 4, 4)],
    ),
)
def test_answers_under_load_are_the_engines_own(model: str, parallel: int, clients: int, tmp_path: Path) -> None:
    name = str(SMALL_MODEL) if model == "small" else "demo"
    real, engine = requests(divisor=2 if model == "small" else 1), mlxmtp.load(name)
    asked = [*real, *strange_requests(max_tokens=4, calls=model == "demo")]
    answers = [*(one.of_engine(engine) for one in real), *[None] * (len(asked) - len(real))]
    # the small model recommends no temperature, and the defaults of the APIs sample
    options = ("--model", name, "--temp", "0", "--queue", "2", "--cache-bytes", "20M", "--parallel", str(parallel))
    with ServerProcess(tmp_path, *options) as server:
        report = run_load(server, asked, answers, clients=clients, seed=3, visits=VISITS)
        assert report.failures == [], server.log
        assert report.compared > clients
        assert report.left > clients
        assert report.strange > clients
        assert idle_failures(server) == []
        figures = server.metrics()
        tokens = {name: n for name, n in figures.items() if name.startswith("tokens_by_turns_total")}
        assert sum(tokens.values()) == figures["tokens_total"]
        assert (sum(tokens.values()) > tokens['tokens_by_turns_total{turns="1"}'] > 0) == (parallel > 1)
