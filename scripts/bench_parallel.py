"""Measure several clients at once: `mlxmtp serve` beside `mlx_lm.server`, with the same model and prompts.

    .venv/bin/python scripts/bench_parallel.py [--model FOLDER] [--clients 1 2 4 8] [--repeats 5] [--tokens 64]

Both servers run all the time, and the arms alternate in random order. Each client streams one greedy answer to a prompt
of its own; all begin at once, and a barrage ends with its last answer. Shown are medians over the barrages with their
quartiles: generated tokens a second, by the wall clock and by the processor time of the server's processes, and the
time to the first token of the last client. A barrage that `mlxmtp` has answered with other texts than one client after
the other ends the run with an error. Ratios are ours to theirs.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from mlxmtp.checkpoints.checkpoint import DEMO

TASKS = (
    "What can I order here, and what does a large latte cost?",
    "Please repeat: one two three four five six seven eight.",
    "Could I have two muffins and a small tea, please?",
    "List the drinks, one a line.",
    "I would like an espresso and a croissant to go.",
    "How much are three cookies and one hot chocolate?",
    "Tell me about the cakes that you have today.",
    "Change my order: no sugar, and oat milk instead.",
)
START_S = 300.0
"""Seconds that a server has to load its model."""


@dataclass(frozen=True)
class Barrage:
    """What one arm did with so many clients at once.

    Args:
        tokens: of all answers. seconds: to the end of the last. cpu_s: of the server's processes.
        last_first_s: from the start to the first token of the last client.
    """

    tokens: int
    seconds: float
    cpu_s: float
    last_first_s: float


@dataclass(frozen=True)
class Answer:
    text: str
    tokens: int
    first_s: float


class Server:
    """A server in a process of its own on a free port."""

    def __init__(self, command: Callable[[int], Sequence[str]], model: str, log: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.model = model
        with log.open("wb") as out:
            self.process = subprocess.Popen(command(self.port), stdout=out, stderr=out, stdin=subprocess.DEVNULL)
        end = time.monotonic() + START_S
        while True:
            try:
                self.ask(TASKS[0], 1)
                return
            except (OSError, http.client.HTTPException, ValueError):
                if self.process.poll() is not None or time.monotonic() > end:
                    raise SystemExit(
                        f"{' '.join(command(self.port))} does not answer; its output is in {log}"
                    ) from None
                time.sleep(0.2)

    def ask(self, task: str, max_tokens: int) -> Answer:
        """Stream one answer."""
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": task}],
            "max_tokens": max_tokens,
            "temperature": 0.0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        started, first, text, tokens = time.perf_counter(), 0.0, [], 0
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        reply = connection.getresponse()
        if reply.status != 200:
            raise ValueError(f"status {reply.status}: {reply.read()[:200]!r}")
        for line in reply:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            delta = event["choices"][0]["delta"] if event.get("choices") else {}
            if delta.get("content") or delta.get("reasoning") or delta.get("tool_calls"):
                first = first or time.perf_counter() - started
                text.append(delta.get("content") or "")
            tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
        connection.close()
        return Answer("".join(text), tokens, first)

    def barrage(self, clients: int, max_tokens: int) -> tuple[Barrage, list[Answer]]:
        """Have so many clients ask at once."""
        answers: list[Answer | None] = [None] * clients

        def client(i: int) -> None:
            answers[i] = self.ask(TASKS[i % len(TASKS)], max_tokens)

        threads = [threading.Thread(target=client, args=(i,)) for i in range(clients)]
        cpu, started = self.cpu_seconds(), time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds, cpu = time.perf_counter() - started, self.cpu_seconds() - cpu
        done = [answer for answer in answers if answer]
        if len(done) < clients:
            raise SystemExit("a client got no answer")
        last = max(answer.first_s for answer in done)
        return Barrage(sum(answer.tokens for answer in done), seconds, cpu, last), done

    def cpu_seconds(self) -> float:
        """Processor time of the server and of its children so far, where /proc tells it."""
        pids, total = [self.process.pid], 0
        while pids:
            pid = pids.pop()
            total += sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]))
            for task in Path(f"/proc/{pid}/task").iterdir():
                pids += map(int, (task / "children").read_text().split())
        return total / 100

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(DEMO))
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--serve", default="", help="further options of mlxmtp serve")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    logs = Path(tempfile.mkdtemp(prefix="bench-parallel-"))
    most = max(args.clients)
    arms = {
        "mlxmtp": Server(
            lambda port: [
                *(sys.executable, "-m", "mlxmtp", "serve", "--model", args.model, "--port", str(port)),
                *("--parallel", str(most), *args.serve.split()),
            ],
            "x",
            logs / "mlxmtp.log",
        ),
        "mlx-lm": Server(
            lambda port: [
                *(sys.executable, "-m", "mlx_lm", "server", "--model", args.model, "--port", str(port)),
                *("--decode-concurrency", str(most), "--prompt-concurrency", str(most)),
            ],
            args.model,
            logs / "mlx-lm.log",
        ),
    }
    found: dict[tuple[int, str], list[Barrage]] = {}
    try:
        alone = [arms["mlxmtp"].ask(task, args.tokens).text for task in TASKS]
        for repeat in range(args.repeats + 1):
            for clients in args.clients:
                for name in random.sample(sorted(arms), len(arms)):
                    barrage, answers = arms[name].barrage(clients, args.tokens)
                    if name == "mlxmtp" and [answer.text for answer in answers] != [
                        alone[i % len(TASKS)] for i in range(clients)
                    ]:
                        raise SystemExit(f"{clients} clients at once got other texts than one after the other")
                    if repeat:  # the first compiles kernels
                        found.setdefault((clients, name), []).append(barrage)
    finally:
        for server in arms.values():
            server.stop()
    print_table(found, args.clients)
    if args.json:
        rows = [[clients, name, [vars(one) for one in runs]] for (clients, name), runs in found.items()]
        args.json.write_text(json.dumps(rows))


def print_table(found: dict[tuple[int, str], list[Barrage]], clients: Sequence[int]) -> None:
    measures: dict[str, Callable[[Barrage], float]] = {
        "tokens/s": lambda one: one.tokens / one.seconds,
        "tokens/processor second": lambda one: one.tokens / max(one.cpu_s, 1e-9),
        "last first token, s": lambda one: one.last_first_s,
    }
    print(f"{'clients':>7}  {'measure':<24}{'mlxmtp':>24}{'mlx-lm':>24}{'ratio':>8}")
    for number in clients:
        for name, measure in measures.items():
            ours, theirs = ([measure(one) for one in found[number, arm]] for arm in ("mlxmtp", "mlx-lm"))
            ratio = statistics.median(ours) / statistics.median(theirs)
            print(f"{number:>7}  {name:<24}{spread(ours):>24}{spread(theirs):>24}{ratio:>8.2f}")


def spread(values: Sequence[float]) -> str:
    low, _, high = statistics.quantiles(values, n=4) if len(values) > 1 else (values[0],) * 3
    return f"{statistics.median(values):.2f} ({low:.2f} to {high:.2f})"


if __name__ == "__main__":
    main()
