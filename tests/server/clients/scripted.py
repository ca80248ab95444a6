"""The real server with an engine whose answers come from a test.

`python scripted.py serve FOLDER` serves the answers that `Scripted.write` has put into the folder; `python scripted.py
engine FOLDER` is its engine process. Prompts are rendered with the demo's tokenizer and a template that shows every
field of a message.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONTEXT = 200_000
PIECE = 24
"""Characters of an answer in one event."""
END = "<|im_end|>"
TURN = "<|im_start|>assistant\n"
HELD_S = 60
"""Seconds that the engine waits for `Scripted.held` to end, so that it does not outlive a failed test."""
TEMPLATE = r"""
{%- if tools %}<|im_start|>tools
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}<|im_end|>
{% endif %}
{%- for message in messages %}
{%- if message.role == 'tool' %}<|im_start|>user
<tool_response>
{{ message.content }}
</tool_response><|im_end|>
{% elif message.role == 'assistant' %}<|im_start|>assistant
{% if message.reasoning_content %}<think>
{{ message.reasoning_content }}
</think>

{% endif %}{{ message.content }}
{%- for tool_call in message.tool_calls or [] %}
{%- set tool_call = tool_call.function %}
{%- if message.content or not loop.first %}{{ '\n' }}{% endif %}<tool_call>
{"name": "{{ tool_call.name }}", "arguments": {{ tool_call.arguments | tojson }}}
</tool_call>
{%- endfor %}<|im_end|>
{% else %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


@dataclass(frozen=True)
class Answer:
    """An answer of the engine: reasoning, text, and tool calls with names and arguments."""

    thought: str = ""
    text: str = ""
    calls: Sequence[tuple[str, dict[str, Any]]] = ()

    @property
    def written(self) -> str:
        """The answer as the chat template writes it."""
        thought = f"<think>\n{self.thought}\n</think>\n\n" if self.thought else ""
        calls = [
            json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False) for name, arguments in self.calls
        ]
        return thought + "\n".join([self.text] * bool(self.text) + [f"<tool_call>\n{c}\n</tool_call>" for c in calls])


@dataclass(frozen=True)
class Asked:
    """A prompt that the engine got, the tools in it, and the answer."""

    prompt: str
    tools: list[dict[str, Any]]
    said: str
    settings: dict[str, Any]


class Scripted:
    """The folder of a scripted model. A prompt with n answers in its history gets answer n, or the last one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def make(self) -> None:
        """Write the files of a tokenizer."""
        from mlxmtp.checkpoints.checkpoint import DEMO

        for name in ("config.json", "tokenizer.json", "generation_config.json"):
            (self.folder / name).write_bytes((DEMO / name).read_bytes())
        about = json.loads((DEMO / "tokenizer_config.json").read_text()) | {"chat_template": TEMPLATE}
        (self.folder / "tokenizer_config.json").write_text(json.dumps(about))

    def write(self, *answers: Answer) -> None:
        """Set the answers from now on, and forget earlier prompts."""
        (self.folder / "asked.jsonl").unlink(missing_ok=True)
        (self.folder / "answers.json").write_text(json.dumps([answer.written for answer in answers]))

    @property
    def answers(self) -> list[str]:
        return list(json.loads((self.folder / "answers.json").read_text()))

    @contextmanager
    def held(self) -> Iterator[None]:
        """Block the engine inside the `with` block."""
        (self.folder / "hold").touch()
        try:
            yield
        finally:
            (self.folder / "hold").unlink()

    def wait(self) -> None:
        """Wait until the engine is not blocked."""
        deadline = time.monotonic() + HELD_S
        while (self.folder / "hold").exists() and time.monotonic() < deadline:
            time.sleep(0.02)

    @property
    def asked(self) -> list[Asked]:
        log = self.folder / "asked.jsonl"
        return [Asked(**json.loads(line)) for line in log.read_text().splitlines()] if log.exists() else []

    def add(self, asked: Asked) -> None:
        with (self.folder / "asked.jsonl").open("a") as log:
            log.write(json.dumps(vars(asked)) + "\n")


def serve(folder: str) -> None:
    from mlxmtp.server import main
    from mlxmtp.worker.process import WorkerProcess

    engine = (sys.executable, "-P", __file__, "engine", folder)
    main.serve(main.ServeOptions(folder, port=0, queue=0), lambda: WorkerProcess.start(engine))


def engine(folder: str) -> None:
    """Speak the worker's protocol on standard input and output."""
    from mlxmtp.engine.loading import load_tokenizer
    from mlxmtp.worker.lines import decode, encode
    from mlxmtp.worker.messages import Generate, Load, Loaded

    scripted = Scripted(Path(folder))
    tokenizer = load_tokenizer(scripted.folder)
    for line in sys.stdin.buffer:
        command = decode(line)
        events: Iterator[Any] = iter(())
        if isinstance(command, Load):
            about = {"head": None, "plain_because": "it is scripted", "head_source": None, "head_by_name": False}
            numbers = {"context": CONTEXT, "memory_limit": 1, "seconds": 0.0}
            kinds = {"has_thinking": True, "promise": "identical", "folder": folder}
            events = iter([Loaded(command.id, "scripted", **about, **numbers, **kinds)])
        elif isinstance(command, Generate):
            events = turn(scripted, tokenizer, command)
        for event in events:
            sys.stdout.buffer.write(encode(event))
            sys.stdout.buffer.flush()


def turn(scripted: Scripted, tokenizer: Any, command: Any) -> Iterator[Any]:
    """The events of an answer, with one token in each round."""
    from mlxmtp.decoding.stats import Round, StatsAccumulator
    from mlxmtp.engine.output import OutputParser
    from mlxmtp.worker.messages import Finished, Memory, PromptProgress, TurnDelta

    prompt = tokenizer.decode(command.messages)
    first = prompt.split(END)[0].splitlines()
    tools = [json.loads(line) for line in first[1:]] if first[0] == "<|im_start|>tools" else []
    answers = scripted.answers
    answer = answers[min(prompt.count(TURN), len(answers)) - 1]
    scripted.wait()
    scripted.add(Asked(prompt, tools, answer, vars(command.settings)))
    tally, memory = StatsAccumulator(len(command.messages), time.perf_counter()), Memory(0, 0, 0)
    yield PromptProgress(command.id, len(command.messages), len(command.messages))
    tally.prefilled(time.perf_counter())
    splitter = OutputParser(tokenizer, command.messages, command.opening)
    for start in range(0, len(answer), PIECE):
        tally.add(Round((0,), 0, 0, 1, None), time.perf_counter())
        parts = splitter.feed(answer[start : start + PIECE])
        yield TurnDelta(command.id, [[part.kind, part.text] for part in parts], tally.stats(0), memory)
    rest = [[part.kind, part.text] for part in splitter.finish()]
    yield TurnDelta(command.id, rest, tally.stats(0), memory)
    yield Finished(command.id, "stop", {}, tally.stats(0), memory)


if __name__ == "__main__":
    {"serve": serve, "engine": engine}[sys.argv[1]](*sys.argv[2:])
