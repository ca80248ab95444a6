"""Measure the overhead of the server, and its memory under load.

    .venv/bin/python scripts/bench_serve.py overhead [--repeats 3]
    .venv/bin/python scripts/bench_serve.py soak [--minutes 10] [--clients 8] [--seed 1]

`overhead` runs the real engine process with its text replaced by prose (bench_chat.py), in three arms: its events are
read directly ("bare"), through the server by a client that streams, and by one that does not. The arms alternate, with
fresh processes every few turns, and share a new data folder. Two models: the demo with MTP, and a model of one layer,
decoded plainly. Rates are the engine's own, and those of the reader's clock from the first token to the end. The
processor time of the server is an upper bound of what it can take from the engine; on a machine with other load it says
more than the ratios.
`soak` is the load of tests/server/load for longer: client processes, many of which disconnect early. Every finished
answer is compared with the engine's own; of strange requests, which are among them, the status is. At the end the queue
must be empty, and neither process may have grown.
Exit code 1: something failed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPO), str(REPO / "tui"), str(REPO / "scripts")]

from bench_chat import engine as scripted_engine  # noqa: E402
from bench_chat import random_model, spread  # noqa: E402

TOKENS = {"the demo, MTP": 200, "one layer, plain": 800}
TURNS = 4
"""Turns of each arm for each pair of processes."""
PROMPT = "Count from 1 to 500."
CACHE = "64M"
QUEUE = 4
"""Length of the queue: less than the clients, so that some get a 503 and try again."""
SAMPLE_S = 5.0
"""Seconds between two samples of the memory."""
GROWTH = {"server": 16e6, "engine": 64e6, "templates": 16e6}
"""Bytes that a process may grow from the second quarter of a soak to the last."""


def main() -> int | None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("overhead", "soak", "serve", "engine"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    parser.add_argument("--text", default="prose", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    whats = {"overhead": overhead, "soak": soak, "serve": serve, "engine": scripted_engine}
    return whats[arguments.what](arguments)


# -- overhead -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rate:
    """The speed of one turn.

    Args:
        engine: tokens a second, by the engine's statistics.
        clock: tokens a second by the reader's clock, from the first token to the end; 0: not streamed.
        turn_s: seconds from the request to the end.
    """

    engine: float
    clock: float
    turn_s: float


def overhead(arguments: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        # what an earlier run has measured must not choose the depths of one arm
        os.environ["XDG_DATA_HOME"] = folder
        models = dict(zip(TOKENS, (None, str(random_model(Path(folder) / "model", 1))), strict=True))
        for name, model in models.items():
            rounds: list[dict[str, Rate]] = []
            own = [measure(model, TOKENS[name], rounds) for _ in range(arguments.repeats)]
            print(f"{name}, {TOKENS[name]} tokens, {len(rounds)} turns an arm")
            report(rounds)
            share = statistics.median(own) * statistics.median(one["bare"].engine for one in rounds)
            print(
                f"  the server's own time: {spread([1e6 * s for s in own], 'µs a token', 0)}, {share:.1%} of a token's"
            )


def measure(model: str | None, tokens: int, rounds: list[dict[str, Rate]]) -> float:
    """Run some turns of each arm with fresh processes. Returns the server's processor seconds for each token."""
    from tests.server.process import ServerProcess

    options = ["--model", model] if model else []
    command = (__file__, "serve")
    with (
        tempfile.TemporaryDirectory() as home,
        ServerProcess(Path(home), *options, program=command) as server,
        Bare(model) as engine,
    ):
        arms = {
            "bare": lambda: engine.turn(tokens),
            "streamed": lambda: ask(server.url, tokens, stream=True),
            "whole": lambda: ask(server.url, tokens, stream=False),
        }
        for run in arms.values():
            run()  # warms up
        before = processor_s(server.pid)
        for turn in range(TURNS):
            names = list(arms)[turn % 3 :] + list(arms)[: turn % 3]
            rounds.append({name: arms[name]() for name in names})
        return (processor_s(server.pid) - before) / (2 * TURNS * tokens)


def report(rounds: list[dict[str, Rate]]) -> None:
    """Print the figures of each arm, and their ratios to the bare engine, turn by turn."""
    for arm in rounds[0]:
        rates = [one[arm] for one in rounds]
        clock = f", {spread([rate.clock for rate in rates], 'tok/s', 1)} by the clock" if rates[0].clock else ""
        seconds = spread([rate.turn_s for rate in rates], "s a turn", 3)
        print(f"  {arm:9}{spread([rate.engine for rate in rates], 'tok/s', 1)} by the engine{clock}, {seconds}")
    for arm in ("streamed", "whole"):
        pairs = [(one[arm], one["bare"]) for one in rounds]
        ratios = {"by the engine": [one.engine / other.engine for one, other in pairs]}
        if pairs[0][0].clock:
            ratios["by the clock"] = [one.clock / other.clock for one, other in pairs]
        ratios["whole turns"] = [other.turn_s / one.turn_s for one, other in pairs]
        print(f"  {arm} / bare: " + "; ".join(f"{how} {spread(values, '', 3)}" for how, values in ratios.items()))


class Bare:
    """An engine process whose events are read directly."""

    def __init__(self, model: str | None) -> None:
        self._runner = asyncio.Runner()
        self._runner.run(self._open(model))

    def __enter__(self) -> Bare:
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.run(self._client.close())
        self._runner.close()

    def turn(self, tokens: int) -> Rate:
        return self._runner.run(self._turn(tokens))

    async def _open(self, model: str | None) -> None:
        from mlxmtp.worker.client import EngineClient
        from mlxmtp.worker.messages import Load, Loaded
        from mlxmtp.worker.process import WorkerProcess

        self._client = EngineClient(lambda: WorkerProcess.start(program("engine")))
        await self._client.start()
        loaded = await self._client.request(lambda id: Load(id, model, cache_bytes=0)).last()
        assert isinstance(loaded, Loaded)

    async def _turn(self, tokens: int) -> Rate:
        from mlxmtp.engine.request import GenerationOptions
        from mlxmtp.worker.messages import Finished, Generate, TurnDelta

        started, first = time.perf_counter(), 0.0
        message = {"role": "user", "content": PROMPT}
        async for event in self._client.request(
            lambda id: Generate(id, [message], GenerationOptions(max_tokens=tokens))
        ):
            first = first or (time.perf_counter() if isinstance(event, TurnDelta) else 0.0)
        end = time.perf_counter()
        assert isinstance(event, Finished)
        assert event.stats
        assert event.stats.tokens == tokens
        return Rate(event.stats.decode_tps, (tokens - 1) / (end - first), end - started)


def ask(url: str, tokens: int, *, stream: bool) -> Rate:
    body = {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": tokens, "stream": stream}
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), headers)
    started, first, last = time.perf_counter(), 0.0, b""
    with urllib.request.urlopen(request, timeout=300) as answer:
        for line in answer:
            if not first and b'"content":"' in line and b'"content":""' not in line:
                first = time.perf_counter()
            last = line if b'"timings"' in line else last
    end = time.perf_counter()
    timings = json.loads(last.removeprefix(b"data: "))["timings"]
    assert timings["predicted_n"] == tokens
    clock = (tokens - 1) / (end - first) if stream else 0.0
    return Rate(timings["predicted_per_second"], clock, end - started)


def processor_s(pid: int) -> float:
    """Processor seconds of a process; NaN where there is no /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return float("nan")
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def program(what: str) -> tuple[str, ...]:
    return sys.executable, "-P", __file__, what


def serve(arguments: argparse.Namespace) -> None:
    """Run the real server with the engine of bench_chat.py."""
    from mlxmtp.server import main as server
    from mlxmtp.worker.process import WorkerProcess

    options = server.ServeOptions(arguments.model, port=0, cache_bytes=0)
    server.serve(options, lambda: WorkerProcess.start(program("engine")))


# -- soak -----------------------------------------------------------------------------------------------------------


def soak(arguments: argparse.Namespace) -> int:
    import mlxmtp
    from tests.server.load.load import idle_failures, requests, run_load
    from tests.server.load.strange import strange_requests
    from tests.server.process import ServerProcess

    real, engine, strange = requests(), mlxmtp.load(), strange_requests(max_tokens=16)
    answers = [*(one.of_engine(engine) for one in real), *[None] * len(strange)]
    del engine
    serve = ("--queue", str(QUEUE), "--cache-bytes", CACHE)
    with tempfile.TemporaryDirectory() as home, ServerProcess(Path(home), *serve) as server:
        server.wait_for_line(" at http://")
        memory = Memory(server.pid)
        load = {"clients": arguments.clients, "seed": arguments.seed, "seconds": 60 * arguments.minutes}
        report = run_load(server, [*real, *strange], answers, **load, meanwhile=memory.sample)
        failures = [*report.failures, *idle_failures(server), *memory.growth()]
        figures = server.metrics()
    plans = ", ".join(f"{plan} {n}" for plan, n in report.plans.most_common())
    sent_away = sum(int(n) for name, n in figures.items() if name.startswith("requests_total") and '"503"' in name)
    print(f"{sum(report.plans.values())} requests of {arguments.clients} clients in {arguments.minutes:g} min: {plans}")
    print(f"{report.left} left early, {sent_away} times the queue was full, {report.compared} answers compared")
    print(f"{report.strange} strange requests answered as expected or listed below")
    print(memory)
    print("\n".join(failures) or "every answer was the engine's own; nothing waits or runs, nothing has grown")
    return 1 if failures else 0


class Memory:
    """The resident memory and the open files of a server and its engine over time.

    Args:
        server: process id.
    """

    def __init__(self, server: int) -> None:
        self._server = server
        self._next = 0.0
        self._bytes: dict[str, list[float]] = {name: [] for name in GROWTH}
        self._files: list[int] = []

    def sample(self) -> None:
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + SAMPLE_S
        for name, size in self._sizes():
            self._bytes[name].append(size)
        if Path(f"/proc/{self._server}/fd").exists():
            self._files.append(len(os.listdir(f"/proc/{self._server}/fd")))

    def growth(self) -> list[str]:
        """Errors for the processes that have grown too much."""
        grown = {name: self._quarter(name, 3) - self._quarter(name, 1) for name in GROWTH}
        return [f"the {name} has grown by {by / 1e6:.1f} MB" for name, by in grown.items() if by > GROWTH[name]]

    def __str__(self) -> str:
        lines = []
        for name, sizes in self._bytes.items():
            quarters = " ".join(f"{self._quarter(name, i) / 1e6:.1f}" for i in range(4))
            lines.append(f"{name}: {quarters} MB resident in the quarters of the time, at most {max(sizes) / 1e6:.1f}")
        files = f"; the server's open files: {self._files[0]} first, {max(self._files)} at most, {self._files[-1]} last"
        return "\n".join(lines) + (files if self._files else "")

    def _quarter(self, name: str, number: int) -> float:
        sizes = self._bytes[name]
        return statistics.median(sizes[len(sizes) * number // 4 :][: max(len(sizes) // 4, 1)])

    def _sizes(self) -> Iterator[tuple[str, float]]:
        listed = subprocess.run(
            ["ps", "-A", "-ww", "-o", "pid=,ppid=,rss=,args="], capture_output=True, text=True, check=True
        )
        for line in listed.stdout.splitlines():
            pid, parent, kilobytes, command = line.split(maxsplit=3)
            if int(pid) == self._server:
                yield "server", int(kilobytes) * 1024.0
            elif int(parent) == self._server:
                yield "engine" if "mlxmtp.worker" in command else "templates", int(kilobytes) * 1024.0


if __name__ == "__main__":
    sys.exit(main())
