"""The HTTP side of `tests.hub`: files with ranges, a record of what was sent, and faults on demand."""

import json
import re
import sys
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from typing import Any, Literal

CHUNK = 1 << 16


@dataclass
class Fault:
    """Something that goes wrong with the next `times` requests whose "METHOD /path" has `match` (a regex) in it.

    `status` answers any request with that status; the others go with the content of files, never with a redirect:
    `cut`           announces the whole body, sends `value` bytes (by default half of them) and hangs up
    `length`        announces and sends `value` bytes (by default half of them), whatever was asked
    `corrupt`       flips the bits of the byte at `value` (by default the first) of the body
    `ignore_range`  answers 200 and the whole file to a request for a part
    `slow`          waits `value` seconds in the middle of the body
    """

    match: str
    kind: Literal["status", "cut", "length", "corrupt", "ignore_range", "slow"]
    times: int = 1
    value: Any = None
    retry_after: int = 1  # seconds, sent with status 429


@dataclass
class Request:
    """What came in and what went out; `sent_bytes` are those of `repo`'s files only."""

    method: str
    path: str
    range: str | None
    token: str | None
    status: int = 0
    sent_bytes: int = 0
    repo: str | None = None


class Refused(Exception):  # noqa: N818
    """An answer that is an error; `code` is what the client chooses its exception by."""

    def __init__(self, status: int, code: str = "", message: str = "refused", **headers: str):
        super().__init__(message)
        self.status = status
        self.headers = ({"X-Error-Code": code, "X-Error-Message": message} if code else {}) | headers


class Traffic:
    """What passed and what is to go wrong; both lists may be read and changed meanwhile."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.closing = threading.Event()
        self._lock = threading.Lock()

    def take(self, line: str, *kinds: str) -> dict[str, Fault]:
        """Use up one matching fault of each kind."""
        taken: dict[str, Fault] = {}
        with self._lock:
            for fault in list(self.faults):
                if fault.kind in kinds and fault.kind not in taken and re.search(fault.match, line):
                    taken[fault.kind] = fault
                    fault.times -= 1
                    if fault.times <= 0:
                        self.faults.remove(fault)
        return taken


class Handler(BaseHTTPRequestHandler):
    """One connection; a subclass answers in `respond`."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are separate writes
    server: "Server"

    def respond(self, line: str) -> None:
        """Answer "METHOD /path" or raise `Refused`."""
        raise NotImplementedError

    def serve(self) -> None:
        authorization = self.headers.get("Authorization") or ""
        self.record = Request(
            self.command, self.path, self.headers.get("Range"), authorization.removeprefix("Bearer ") or None
        )
        self.server.traffic.requests.append(self.record)
        self.body = self._read_body()  # even where the answer is an error: the connection goes on
        self.line = f"{self.command} {self.path.partition('?')[0]}"
        try:
            for fault in self.server.traffic.take(self.line, "status").values():
                headers = {"Retry-After": str(fault.retry_after)} if fault.value == 429 else {}
                raise Refused(fault.value, message="on demand", **headers)
            self.respond(self.line)
        except Refused as error:
            self.answer({"error": str(error)}, error.status, error.headers)

    do_GET = do_HEAD = do_POST = do_PUT = serve  # noqa: N815

    def answer(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        """JSON."""
        body = json.dumps(content).encode()
        self._start(status, {"Content-Type": "application/json", "Content-Length": str(len(body))} | (headers or {}))
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_file(self, file: Path, repo: str, headers: dict[str, str]) -> None:
        """The file or the asked part of it, with the faults that are due."""
        size = file.stat().st_size
        start, end, status = 0, size, 200
        faults: dict[str, Fault] = {}
        if self.command == "GET":
            self.record.repo = repo
            part = _part(self.headers.get("Range"), size)
            if part and not self.server.traffic.take(self.line, "ignore_range"):
                (start, end), status = part, 206
                if start >= end:
                    raise Refused(416, **{"Content-Range": f"bytes */{size}"})
                headers = headers | {"Content-Range": f"bytes {start}-{end - 1}/{size}"}
            faults = self.server.traffic.take(self.line, "cut", "length", "corrupt", "slow")

        def at_most(length: int, kind: str) -> int:
            value = faults[kind].value if kind in faults else length
            return length // 2 if value is None else min(length, value)

        announced = at_most(end - start, "length")
        self._start(status, {"Accept-Ranges": "bytes", "Content-Length": str(announced)} | headers)
        if self.command == "HEAD":
            return
        due = at_most(announced, "cut")
        self.close_connection = due < announced
        with file.open("rb") as source:
            source.seek(start)
            self._copy(source, 0, due // 2, faults)
            if "slow" in faults and self.server.traffic.closing.wait(faults["slow"].value):
                raise ConnectionAbortedError
            self._copy(source, due // 2, due, faults)

    def _copy(self, source: Any, at: int, end: int, faults: dict[str, Fault]) -> None:
        """The bytes from `at` to `end` of the body."""
        while at < end:
            chunk = bytearray(source.read(min(CHUNK, end - at)))
            bad = (faults["corrupt"].value or 0) - at if "corrupt" in faults else -1
            if 0 <= bad < len(chunk):
                chunk[bad] ^= 0xFF
            self.record.sent_bytes += len(chunk)  # first, so that a client that has the bytes finds them counted
            self.wfile.write(chunk)
            at += len(chunk)

    def _start(self, status: int, headers: dict[str, str]) -> None:
        self.record.status = status
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while length := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(length))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def log_message(self, *_: Any) -> None:
        """`requests` is the log."""


class Server(ThreadingHTTPServer):
    """A server on a free port of the loopback interface."""

    request_queue_size = 64  # the client downloads in many threads

    def __init__(self, traffic: Traffic, handler: type[Handler]):
        self.traffic = traffic
        super().__init__(("127.0.0.1", 0), handler)

    def server_bind(self) -> None:
        TCPServer.server_bind(self)  # HTTPServer's looks its own name up, which takes seconds on some Macs
        self.server_name, self.server_port = self.server_address[:2]

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client that hangs up or is killed is no error
            super().handle_error(request, client_address)


def _part(asked: str | None, size: int) -> tuple[int, int] | None:
    """Start and end of an asked range; several ranges, or nonsense, count as not asked, as HTTP allows."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", asked or "")
    if not match or not any(match.groups()):
        return None
    first, last = match.groups()
    if not first:
        return max(0, size - int(last)), size
    return int(first), min(size, int(last) + 1) if last else size
