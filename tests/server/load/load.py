"""Load from several processes, and the check of every answer against the engine's own."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any
from urllib.parse import urlsplit

from mlxmtp import Engine, GenerationOptions
from tests.server.load import client
from tests.server.load.client import Order, Visit
from tests.server.protocols import PROTOCOLS, Heard, Protocol
from tests.server.scripted import CHAT, MESSAGES, RESPONSES, sent
from tests.server.serving import ServerProcess

IDLE_S = 30.0
"""How long the server may take to be idle when all clients have gone."""
LEFT = 0
"""The status of a visit whose client has left."""


@dataclass(frozen=True)
class Answer:
    """What has to be the same, and is told by every protocol."""

    text: str
    end: str
    prompt_tokens: int
    tokens: int


@dataclass(frozen=True)
class Asked:
    """A request, for the server and for the engine itself.

    Args:
        messages: (role, text) pairs. sampling: fields of `GenerationOptions`; the fields of bodies have the same names.
    """

    protocol: Protocol
    messages: tuple[tuple[str, str], ...]
    max_tokens: int
    stream: bool
    sampling: dict[str, Any] = field(default_factory=dict)
    stop: tuple[str, ...] = ()

    @property
    def request(self) -> tuple[str, dict[str, Any]]:
        """Path and body."""
        body = self.sampling | {self.protocol.turns: self._turns, self.protocol.limit: self.max_tokens}
        if self.stop and self.protocol.stop:
            body |= {self.protocol.stop: list(self.stop)}
        if self.stream and self.protocol.path == CHAT:
            body |= {"stream_options": {"include_usage": True}}
        return self.protocol.path, body | {"model": "demo", "stream": self.stream}

    def of_engine(self, engine: Engine) -> Answer:
        """The engine's own answer."""
        done = engine.generate(
            self._turns, GenerationOptions(**self.sampling, max_tokens=self.max_tokens, stop=self.stop)
        )
        return Answer(done.text, done.finish_reason, done.prompt_tokens, len(done.tokens))

    def of_server(self, body: str) -> Answer:
        """The server's, as strict as a client can be."""
        heard: Heard = self.protocol.streamed(sent(body)) if self.stream else self.protocol.whole(json.loads(body))
        assert heard.usage
        end = "stop" if heard.end == "stop_sequence" else heard.end
        return Answer(heard.text, end, heard.usage[0], heard.usage[2])

    @property
    def _turns(self) -> list[dict[str, str]]:
        return [{"role": role, "content": text} for role, text in self.messages]


def requests() -> list[Asked]:
    """Prompts of several lengths, conversations that go on, ways to sample, all protocols, streamed and whole."""
    chat, messages, responses = (next(one for one in PROTOCOLS if one.path == p) for p in (CHAT, MESSAGES, RESPONSES))
    hello = (("user", "Hello!"),)
    order = (*hello, ("assistant", "Hello! What can I get for you today?"), ("user", "Two cups of coffee, please."))
    code = (("system", "You write Python."), ("user", "Write a Python class with many methods."))
    maths = (("user", "Tom has 3 boxes of 12 apples, and gives 7 away. How many are left?"),)
    long = (("user", "Which of these words is not like the others?\n" + "one two three four five six\n" * 15),)
    endless = (("user", "Count from 1 to 500."),)
    return [
        Asked(chat, hello, 40, True),
        Asked(messages, hello, 40, False),
        Asked(responses, order, 60, True),
        Asked(messages, order, 60, True),
        Asked(chat, order, 60, False),
        Asked(responses, code, 48, False, {"temperature": 0.7, "seed": 3}),
        Asked(chat, code, 48, True, {"temperature": 0.7, "top_k": 20, "seed": 3}),
        Asked(messages, maths, 64, True, {"temperature": 0.9, "top_p": 0.9, "seed": 11}),
        Asked(chat, maths, 64, True, stop=(".", "\n")),
        Asked(messages, maths, 64, False, stop=("apples",)),
        Asked(responses, long, 24, True),
        Asked(messages, long, 24, False),
        Asked(chat, endless, 64, True, {"frequency_penalty": 0.5}),
        Asked(responses, endless, 64, False),
        Asked(chat, endless, 64, True, {"temperature": 1.0, "min_p": 0.05, "seed": 5}),
    ]


@dataclass
class Report:
    """What came of a load: visits by plan, answers that were compared, and what should not have been."""

    plans: Counter[str] = field(default_factory=Counter)
    left: int = 0
    compared: int = 0
    failures: list[str] = field(default_factory=list)

    def add(self, visit: Visit, asked: Asked, answer: Answer) -> None:
        self.plans[visit.plan] += 1
        if visit.failure:
            self._fail(visit, asked, visit.failure)
        elif visit.status == LEFT:
            self.left += 1
        elif visit.status != 200:
            self._fail(visit, asked, f"status {visit.status}: {visit.body}")
        else:
            self.compared += 1
            try:
                found = asked.of_server(visit.body)
                if found != answer:
                    self._fail(visit, asked, f"{found} in place of the engine's {answer}")
            except (AssertionError, LookupError, TypeError, ValueError) as error:
                self._fail(visit, asked, f"not understood, {error!r}: {visit.body}")

    def _fail(self, visit: Visit, asked: Asked, what: str) -> None:
        self.failures.append(f"{visit.plan}, request {visit.request}, {asked.protocol.path}: {what}")


def crowd(
    server: ServerProcess,
    asked: Sequence[Asked],
    answers: Sequence[Answer],
    *,
    clients: int,
    seed: int,
    visits: int = sys.maxsize,
    seconds: float,
    meanwhile: Callable[[], None] = lambda: None,
) -> Report:
    """Let processes ask at once; `meanwhile` is called about once a second."""
    report, port = Report(), urlsplit(server.url).port or 0
    with ExitStack() as stack:
        outputs = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(clients)]
        processes = []
        for number, output in enumerate(outputs):
            order = Order(port, [one.request for one in asked], seed * 1000 + number, visits, seconds)
            command = [sys.executable, "-S", client.__file__]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output, text=True)
            stack.callback(process.kill)
            assert process.stdin
            process.stdin.write(json.dumps(asdict(order)))
            process.stdin.close()
            processes.append(process)
        while any(process.poll() is None for process in processes):
            meanwhile()
            time.sleep(1.0)
        for process, output in zip(processes, outputs, strict=True):
            if process.returncode:
                report.failures.append(f"a client ended with {process.returncode}")
            output.seek(0)
            for visit in (Visit(**json.loads(line)) for line in output):
                report.add(visit, asked[visit.request], answers[visit.request])
    return report


def unrest(server: ServerProcess) -> list[str]:
    """What is left of a load whose clients have all gone: nothing, once the server is idle."""
    deadline = time.monotonic() + IDLE_S
    while True:
        figures = server.metrics()
        busy = {name: figures[name] for name in ("queue_running", "queue_waiting") if figures[name]}
        if not busy or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    restarts = {"engine_restarts_total": n} if (n := figures["engine_restarts_total"]) else {}
    left = [f"{name} is {value:g}" for name, value in (busy | restarts).items()]
    health = json.loads(server.get("/health"))
    return left if health == {"status": "ok"} else [*left, f"/health says {health}"]
