"""Chat templates, rendered in a process that can be cut: a template may never end, or build gigabytes."""

from __future__ import annotations

import json
import marshal
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import astuple, dataclass
from functools import cache
from typing import Any

from transformers import PreTrainedTokenizerBase

from mlxmtp.engine import template_renderer
from mlxmtp.errors import TemplateLimitError
from mlxmtp.units import size as in_words

START_S = 60.0
"""Seconds that the process has to start and to read a job."""
LOOK_S = 0.1
"""Seconds between two looks at the memory of a process that renders; most texts take less than one."""


@dataclass(frozen=True)
class Limits:
    """What the rendering of a text may take.

    Args:
        seconds: for one text; a prompt is several, to find where others may branch.
        memory_bytes: of the process, beyond what it has at its start.
        min_characters, growth: the text may have `min_characters`, and `growth` for each byte of its messages, because
            nothing can cut its tokenization.
    """

    seconds: float = 5.0
    memory_bytes: int = 1 << 30
    min_characters: int = 1_000_000
    growth: int = 8


class TemplateProcess:
    """Renders templates in a child process, one at a time. It starts when it is needed, also after it was cut."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._interrupted = False
        self._process: subprocess.Popen[bytes] | None = None
        self._link: socket.socket | None = None

    def start(self) -> None:
        """Start the process, unless it runs; it gets ready by itself."""
        with self._lock:
            self._running()

    def render(self, template: str, messages: Sequence[Any], variables: Mapping[str, Any]) -> str:
        """Return the text of the messages.

        Raises:
            TemplateLimitError: the template takes too long or too much memory, or writes too much.
            ValueError: the template refuses the messages.
        """
        job = _dumps([template, list(messages), dict(variables)])
        with self._lock:
            if self._interrupted:
                raise TemplateLimitError("the model's chat template was cut")
            link, process = self._running()
            try:
                link.settimeout(START_S)
                link.sendall(len(job).to_bytes(8, "big") + job)
                link.settimeout(LOOK_S)
                head = self._read(link, 9, process.pid)
                text = self._read(link, int.from_bytes(head[1:], "big"), process.pid).decode(errors="surrogatepass")
            except OSError as error:
                raise TemplateLimitError(f"the model's chat template was cut: {self._end()}") from error
            except BaseException:  # the answer that nobody reads would be taken for the next one's
                self._end()
                raise
        if head[:1] == template_renderer.LIMIT:
            raise TemplateLimitError(f"the model's chat template was cut: {text}")
        if head[:1] == template_renderer.REFUSED:
            raise ValueError(text)
        return text

    @contextmanager
    def interrupted(self) -> Iterator[None]:
        """Within it no text is rendered. One that is being rendered is cut."""
        self._interrupted = True
        try:
            while not self._lock.acquire(timeout=0.01):
                if process := self._process:  # it may not have started yet
                    process.kill()
            self._lock.release()
            yield
        finally:
            self._interrupted = False

    def _running(self) -> tuple[socket.socket, subprocess.Popen[bytes]]:
        if self._link and self._process and self._process.poll() is None:
            return self._link, self._process
        self._end()
        self._link, other = socket.socketpair()
        command = [sys.executable, "-P", template_renderer.__file__, *map(str, astuple(self._limits))]
        with other:
            null = subprocess.DEVNULL
            self._process = subprocess.Popen(command, stdin=other.fileno(), stdout=null, stderr=null)
        return self._link, self._process

    def _end(self) -> str:
        """End the process, and return why it ended."""
        link, process = self._link, self._process
        self._link = self._process = None
        if link:
            link.close()
        if process is None:
            return ""
        with suppress(subprocess.TimeoutExpired):
            process.wait(LOOK_S)
        process.kill()
        code = process.wait()
        late = f"it takes longer than {self._limits.seconds:g} seconds"
        return late if code == -signal.SIGALRM else f"its process ended with code {code}"

    def _read(self, link: socket.socket, size: int, pid: int) -> bytes:
        content = bytearray()
        while len(content) < size:
            try:
                piece = link.recv(min(size - len(content), 1 << 20))
            except TimeoutError:
                if resident_bytes(pid) > self._limits.memory_bytes:
                    limit = in_words(self._limits.memory_bytes)
                    raise TemplateLimitError(f"the model's chat template was cut: it takes more than {limit}") from None
                continue
            if not piece:
                raise ConnectionError
            content += piece
        return bytes(content)


class BoundedTemplate:
    """Renders the chat template of a tokenizer within `Limits`; mlx-lm's wrapper calls it.

    Args:
        tokenizer: of transformers.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def __call__(self, messages: Sequence[Mapping[str, Any]], **variables: Any) -> str:
        template = self._tokenizer.get_chat_template(variables.pop("chat_template", None), variables.get("tools"))
        present = [{name: value for name, value in message.items() if value is not None} for message in messages]
        return renderer().render(template, present, {**self._tokenizer.special_tokens_map, **variables})


def bound_template(tokenizer: Any) -> None:
    """Let the wrapper of a tokenizer render its template within `Limits`.

    A tokenizer whose class has a renderer of its own, in mlx-lm or transformers, keeps it: no checkpoint brought it.

    Args:
        tokenizer: mlx-lm's `TokenizerWrapper`.
    """
    inner = tokenizer._tokenizer
    own = getattr(type(inner), "apply_chat_template", None) is not PreTrainedTokenizerBase.apply_chat_template
    if tokenizer._chat_template is None and not own:
        tokenizer._chat_template = BoundedTemplate(inner)


@cache
def renderer() -> TemplateProcess:
    """Return the one process that renders the templates of all models of this process."""
    return TemplateProcess(Limits())


def resident_bytes(pid: int) -> int:
    """Return the bytes of memory that a process takes; 0 where `ps` does not tell."""
    try:
        listed = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, check=False)
    except OSError:  # a small system without `ps`
        return 0
    return int(listed.stdout.strip() or 0) << 10


def _dumps(value: Any) -> bytes:
    """Return marshalled plain values; other mappings and numbers become plain ones."""
    try:
        return marshal.dumps(value)
    except ValueError:
        return marshal.dumps(json.loads(json.dumps(value, default=dict)))
