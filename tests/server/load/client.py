"""One client of a load test, which often disconnects early. Only the standard library, so that many can run.

`python client.py` reads an `Order` as JSON from standard input, and writes each `Visit` as a line of JSON.
"""

from __future__ import annotations

import json
import random
import socket
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

PATIENCE_S = 300.0
RESET = struct.pack("ii", 1, 0)
"""SO_LINGER: closing the socket sends a reset, as when a program is killed."""
PLANS = {"finish": 12, "leave soon": 2, "leave": 3, "leave in the answer": 4, "send half": 1, "read slowly": 1}
"""What a client does with a request -> relative frequency."""


@dataclass(frozen=True)
class Order:
    """The task of a client.

    Args:
        port: port of the server on loopback.
        requests: (path, body) pairs to choose from.
        seed: seed of the random choices.
        visits: most requests.
        seconds: most seconds.
    """

    port: int
    requests: list[tuple[str, dict[str, Any]]]
    seed: int
    visits: int
    seconds: float


@dataclass(frozen=True)
class Visit:
    """The outcome of one request.

    Args:
        request: its index in the order.
        status: HTTP status; 0: the client disconnected before it.
        body: body of the answer, where the client stayed to its end.
        failure: what went wrong.
    """

    request: int
    plan: str
    status: int = 0
    body: str = ""
    failure: str = ""


def visits(order: Order) -> Iterator[Visit]:
    # the plans are the same in each run; how often a client waits in between depends on the machine
    plans, chance, deadline = random.Random(order.seed), random.Random(order.seed), time.monotonic() + order.seconds
    for _ in range(order.visits):
        if time.monotonic() > deadline:
            return
        number = plans.randrange(len(order.requests))
        [plan] = plans.choices(list(PLANS), list(PLANS.values()))
        yield visit(order, number, plan, chance)


def visit(order: Order, number: int, plan: str, chance: random.Random) -> Visit:
    """One request, until it is answered or the client disconnects. A full queue is tried again."""
    path, body = order.requests[number]
    while True:
        with socket.create_connection(("127.0.0.1", order.port), timeout=PATIENCE_S) as line:
            try:
                status, answer = _talk(line, _request(path, body), plan, chance)
            except (OSError, ValueError) as error:
                return Visit(number, plan, failure=repr(error))
            if status == 0 and chance.random() < 0.5:
                line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        if status != 503:
            return Visit(number, plan, status, answer)
        time.sleep(chance.uniform(0.1, 0.5))


def _talk(line: socket.socket, request: bytes, plan: str, chance: random.Random) -> tuple[int, str]:
    """Status and body of the answer; 0: the client has disconnected, as planned."""
    if plan == "send half":
        line.sendall(request[: len(request) // 2])
        time.sleep(chance.uniform(0, 0.1))
        return 0, ""
    line.sendall(request)
    if plan.startswith("leave") and plan != "leave in the answer":  # in the queue, or during the prefill
        time.sleep(chance.uniform(0, 0.05 if plan == "leave soon" else 2.0))
        return 0, ""
    received, enough = bytearray(), chance.randrange(300, 3000) if plan == "leave in the answer" else sys.maxsize
    while piece := line.recv(64 if plan == "read slowly" else 1 << 16):
        received += piece
        if len(received) > enough:
            return 0, ""
        if plan == "read slowly":
            time.sleep(0.002)
    return _answer(bytes(received))


def _request(path: str, body: dict[str, Any]) -> bytes:
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(content)}\r\n\r\n".encode() + content


def _answer(received: bytes) -> tuple[int, str]:
    """Status and body of a complete answer.

    Raises:
        ValueError: it is not complete.
    """
    head, _, body = received.partition(b"\r\n\r\n")
    status, headers = int(head.split(b" ")[1]), head.lower()
    if b"transfer-encoding: chunked" in headers:
        content = b""
        while True:
            size, _, body = body.partition(b"\r\n")
            length = int(size, 16)
            if len(body) < length + 2:
                raise ValueError("the answer breaks off in a chunk")
            content, body = content + body[:length], body[length + 2 :]
            if not length:
                return status, content.decode()
    length = int(headers.split(b"content-length: ")[1].split(b"\r\n")[0])
    if len(body) != length:
        raise ValueError(f"the answer has {len(body)} bytes of {length}")
    return status, body.decode()


if __name__ == "__main__":
    with suppress(BrokenPipeError):
        for one in visits(Order(**json.load(sys.stdin))):
            print(json.dumps(asdict(one)), flush=True)
