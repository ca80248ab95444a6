"""Load from several client processes; every answer is compared with the engine's own."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

from mlxmtp import Engine, GenerationOptions
from tests.server.load import client
from tests.server.load.client import Order, Visit
from tests.server.load.strange import StrangeRequest
from tests.server.process import ServerProcess
from tests.server.protocols import PROTOCOLS, Protocol
from tests.server.scripted import CHAT, MESSAGES, RESPONSES

IDLE_S = 30.0
"""Seconds that the server has to become idle after the last client has left."""
LEFT = 0
"""Status of a visit whose client disconnected."""


@dataclass(frozen=True)
class Answer:
    """The parts of an answer that every protocol has, and that must be equal."""

    text: str
    end: str
    prompt_tokens: int
    tokens: int


@dataclass(frozen=True)
class LoadRequest:
    """A request to the server, and the same turn for the engine.

    Args:
        messages: (role, text) pairs.
        sampling: fields of `GenerationOptions`; bodies have the same names for them.
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
        """The server's answer, parsed strictly."""
        parsed = self.protocol.parse(body, self.stream)
        assert parsed.usage
        end = "stop" if parsed.end == "stop_sequence" else parsed.end
        return Answer(parsed.text, end, parsed.usage[0], parsed.usage[2])

    @property
    def _turns(self) -> list[dict[str, str]]:
        return [{"role": role, "content": text} for role, text in self.messages]


def requests(divisor: int = 1) -> list[LoadRequest]:
    """Prompts of several lengths, conversations, sampling options; in all protocols, streamed and whole.

    Args:
        divisor: of the numbers of tokens.
    """
    chat, messages, responses = (next(one for one in PROTOCOLS if one.path == p) for p in (CHAT, MESSAGES, RESPONSES))
    hello = (("user", "Hello!"),)
    order = (*hello, ("assistant", "Hello! What can I get for you today?"), ("user", "Two cups of coffee, please."))
    code = (("system", "You write Python."), ("user", "Write a Python class with many methods."))
    maths = (("user", "Tom has 3 boxes of 12 apples, and gives 7 away. How many are left?"),)
    long = (("user", "Which of these words is not like the others?\n" + "one two three four five six\n" * 15),)
    endless = (("user", "Count from 1 to 500."),)
    every = [
        LoadRequest(chat, hello, 40, True),
        LoadRequest(messages, hello, 40, False),
        LoadRequest(responses, order, 60, True),
        LoadRequest(messages, order, 60, True),
        LoadRequest(chat, order, 60, False),
        LoadRequest(responses, code, 48, False, {"temperature": 0.7, "seed": 3}),
        LoadRequest(chat, code, 48, True, {"temperature": 0.7, "top_k": 20, "seed": 3}),
        LoadRequest(messages, maths, 64, True, {"temperature": 0.9, "top_p": 0.9, "seed": 11}),
        LoadRequest(chat, maths, 64, True, stop=(".", "\n")),
        LoadRequest(messages, maths, 64, False, stop=("apples",)),
        LoadRequest(responses, long, 24, True),
        LoadRequest(messages, long, 24, False),
        LoadRequest(chat, endless, 64, True, {"frequency_penalty": 0.5}),
        LoadRequest(responses, endless, 64, False),
        LoadRequest(chat, endless, 64, True, {"temperature": 1.0, "min_p": 0.05, "seed": 5}),
    ]
    return [replace(one, max_tokens=one.max_tokens // divisor) for one in every]


@dataclass
class Report:
    """The result of a load: visits by plan, compared answers, answered strange requests, failures."""

    plans: Counter[str] = field(default_factory=Counter)
    left: int = 0
    compared: int = 0
    strange: int = 0
    failures: list[str] = field(default_factory=list)

    def add(self, visit: Visit, asked: LoadRequest | StrangeRequest, answer: Answer | None) -> None:
        self.plans[visit.plan] += 1
        if visit.failure:
            self._fail(visit, asked, visit.failure)
        elif visit.status == LEFT:
            self.left += 1
        elif isinstance(asked, StrangeRequest):
            self.strange += 1
            if visit.status != asked.status:
                self._fail(visit, asked, f"status {visit.status} in place of {asked.status}: {visit.body}")
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

    def _fail(self, visit: Visit, asked: LoadRequest | StrangeRequest, what: str) -> None:
        self.failures.append(f"{visit.plan}, request {visit.request}, {asked.request[0]}: {what}")


def run_load(
    server: ServerProcess,
    asked: Sequence[LoadRequest | StrangeRequest],
    answers: Sequence[Answer | None],
    *,
    clients: int,
    seed: int,
    visits: int = sys.maxsize,
    seconds: float = math.inf,
    meanwhile: Callable[[], None] = lambda: None,
) -> Report:
    """Run client processes at once; `meanwhile` is called about once a second.

    Args:
        answers: the engine's own; None for a `StrangeRequest`.
    """
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
        for process in processes:
            while process.poll() is None:
                meanwhile()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(1.0)
        for process, output in zip(processes, outputs, strict=True):
            if process.returncode:
                report.failures.append(f"a client ended with {process.returncode}")
            output.seek(0)
            for visit in (Visit(**json.loads(line)) for line in output):
                report.add(visit, asked[visit.request], answers[visit.request])
    return report


def idle_failures(server: ServerProcess) -> list[str]:
    """What is wrong with the server after a load: it must become idle, and no engine may have died."""
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
