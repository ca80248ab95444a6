"""Measure the terminal chat: time to its first paint, the decode rate with it, and the latency of typed keys.

    .venv/bin/python scripts/bench_chat.py paint
    .venv/bin/python scripts/bench_chat.py rate [--repeats 3] [--keys]

`paint` starts `mlxmtp chat` on a pseudo-terminal and waits for the prompt to be drawn.
`rate` runs the engine's process with its text replaced by prose or by one long code block: once read by a loop that
drops the events, once by the chat on a pseudo-terminal, in turn. It uses two models of few layers, without drafts.
`--keys` types while the model generates, and times each key until it is drawn. The rates of these runs are shown apart.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import json
import os
import pty
import select
import statistics
import struct
import sys
import tempfile
import termios
import time
from collections.abc import Iterator
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPO), str(REPO / "tui")]

SIZE = 40, 130
"""Lines and columns of the pseudo-terminal."""
CHARACTERS = 12
"""Characters of the replaced text for each token."""
CODE = 30_000
"""Characters of the code block."""
TOKENS = {"prose": 1000, "code": CODE // CHARACTERS}
LAYERS = 7, 1
"""Layers of the two models: about 100 and 400 tokens a second on two cores."""
KEYS = "абвгдежзиклмнопрстуфхцчшщъыьэюя"
KEY_S = 0.31
"""Seconds between two typed keys."""
PATIENCE_S = 240.0
"""Seconds to wait for an expected output before the script gives up."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("paint", "rate", "engine", "ui"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--keys", action="store_true")
    parser.add_argument("--text", choices=tuple(TOKENS), help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    {"paint": paint, "rate": rate, "engine": engine, "ui": ui}[arguments.what](arguments)


def paint(arguments: argparse.Namespace) -> None:
    """Print the time from the start of the chat to its first paint."""
    seconds = []
    for _ in range(arguments.repeats + 1):
        with tempfile.TemporaryDirectory() as home, Terminal(["-m", "mlxmtp", "chat", "--model", "demo"], home) as chat:
            seconds.append(chat.until("sk something"))  # the cursor is on the A
    print(f"first paint: {spread(seconds[1:], 's', 2)}; the first run, {seconds[0]:.2f} s, warmed the caches")


def rate(arguments: argparse.Namespace) -> None:
    """Print the decode rates without and with the chat, and the latencies of keys."""
    with tempfile.TemporaryDirectory() as folder:
        models = {f"{n} layers": str(random_model(Path(folder) / str(n), n)) for n in LAYERS}
        for name, model in models.items():
            for text in TOKENS:
                bare, chat, typed, keys = [], [], [], []
                for _ in range(arguments.repeats):
                    bare.append(without_chat(model, text))
                    chat.append(with_chat(model, text, [])[0])
                    if arguments.keys:
                        one, latencies = with_chat(model, text, list(KEYS))
                        typed.append(one)
                        keys += latencies
                ratios = [a / b for a, b in zip(chat, bare, strict=True)]
                print(f"{name}, {text}: {spread(bare, 'tok/s', 0)} bare, {spread(chat, 'tok/s', 0)} behind the chat")
                print(f"    ratio {spread(ratios, '', 3)}", flush=True)
                if keys:
                    late = sorted(keys)[round(0.95 * (len(keys) - 1))]
                    print(f"    keys: {spread([k * 1e3 for k in keys], 'ms', 0)}, 95 % within {late * 1e3:.0f} ms")
                    print(f"    rate while typing: {spread(typed, 'tok/s', 0)}", flush=True)


def without_chat(model: str | None, text: str) -> float:
    """Return the decode rate when the events are read and dropped."""
    from mlxmtp.engine.request import GenerationOptions
    from mlxmtp.worker.messages import Finished, Generate, Load, Loaded
    from mlxmtp.worker.process import WorkerProcess

    async def run() -> float:
        worker = await WorkerProcess.start(engine_program(text))
        worker.send(Load(1, model))
        rate = 0.0
        async for event in worker.events():
            if isinstance(event, Loaded):
                wanted = GenerationOptions(max_tokens=TOKENS[text])
                worker.send(Generate(2, [{"role": "user", "content": "go"}], wanted))
            if isinstance(event, Finished):
                rate = event.stats.decode_tps if event.stats else 0.0
                await worker.close()
        return rate

    return asyncio.run(run())


def with_chat(model: str | None, text: str, keys: list[str]) -> tuple[float, list[float]]:
    """Return the decode rate with the chat, and the seconds until each typed key was drawn."""
    options = ["--text", text, *(["--model", model] if model else [])]
    with tempfile.TemporaryDirectory() as home, Terminal([__file__, "ui", *options], home) as chat:
        chat.until("enter sends")
        chat.write("go\r")
        chat.until("answering")
        time.sleep(0.5)
        latencies = []
        for key in keys:
            started = time.perf_counter()
            chat.write(key)
            chat.until(key)
            latencies.append(time.perf_counter() - started)
            chat.read_for(max(KEY_S - latencies[-1], 0))
            if answers(home):
                latencies.pop()
                break
        while not answers(home):
            chat.read_for(0.2)
        return answers(home)[0]["stats"]["decode_tps"], latencies


def answers(home: str) -> list[dict]:
    """Return the answers in the chat's session file."""
    lines = [line for file in Path(home).rglob("chats/*.jsonl") for line in file.read_text().splitlines()]
    return [record for record in map(json.loads, lines) if record.get("role") == "assistant"]


def ui(arguments: argparse.Namespace) -> None:
    """Run the chat with the engine's process below, on the pseudo-terminal of `with_chat`."""
    from mlxmtp_tui.app import ChatApp
    from mlxmtp_tui.options import ChatOptions

    from mlxmtp.engine.request import GenerationOptions
    from mlxmtp.worker.process import WorkerProcess

    options = ChatOptions(arguments.model, settings=GenerationOptions(max_tokens=TOKENS[arguments.text]))
    ChatApp(lambda: WorkerProcess.start(engine_program(arguments.text)), options).run()


def engine_program(text: str) -> tuple[str, ...]:
    """Return the command of the engine's process with replaced text."""
    return sys.executable, "-P", __file__, "engine", "--text", text


def engine(arguments: argparse.Namespace) -> None:
    """Run the engine's process with the text of its tokens replaced."""
    from mlxmtp.decoding.loop import StopDecision
    from mlxmtp.engine import engine as engine_module
    from mlxmtp.worker.serve import main

    class ScriptedDetokenizer:
        """Takes the place of StreamingDetokenizer: `CHARACTERS` of a text for each token, without a stop."""

        stopped_by = None

        def __init__(self, *_: object, tool_calls: bool = False) -> None:  # noqa: ARG002
            self._script = script(arguments.text)
            self._text = ""

        def feed(self, tokens: list[int]) -> StopDecision:
            self._text += "".join(next(self._script) for _ in range(CHARACTERS * len(tokens)))
            return StopDecision(len(tokens), None)

        def take(self) -> str:
            text, self._text = self._text, ""
            return text

        def finish(self) -> None:
            pass

    engine_module.StreamingDetokenizer = ScriptedDetokenizer  # type: ignore[assignment,misc]
    main()


def script(text: str) -> Iterator[str]:
    """Yield the characters of the replaced text."""
    number = 0
    if text == "code":
        yield from "```python\n"
    while True:
        number += 1
        if text == "code":
            yield from f"def step_{number}(state: State, x: int) -> State:\n"
            yield from f"    return state.add(x * {number})  # step {number}\n"
        else:
            yield from f"Sentence {number} says that the fox is **quick**, and `runs` over the lazy dog. " * 4 + "\n\n"


def random_model(folder: Path, layers: int) -> Path:
    """Write a Qwen 3 with random weights and the demo's tokenizer, and return its folder."""
    import mlx.core as mx
    from mlx.utils import tree_flatten
    from mlx_lm.models import qwen3

    from mlxmtp.checkpoints.checkpoint import DEMO

    folder.mkdir()
    config = {
        "model_type": "qwen3",
        "num_hidden_layers": layers,
        "hidden_size": 256,
        "intermediate_size": 768,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 64,
        "vocab_size": 4096,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10_000.0,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    }
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (folder / name).write_bytes((DEMO / name).read_bytes())
    weights = dict(tree_flatten(qwen3.Model(qwen3.ModelArgs.from_dict(config)).parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
    return folder


class Terminal:
    """A Python program on a pseudo-terminal.

    Args:
        arguments: arguments of the Python interpreter.
        home: home folder of the program.
    """

    def __init__(self, arguments: list[str], home: str) -> None:
        self._started = time.perf_counter()
        self._seen = ""
        self._pid, self._terminal = pty.fork()
        if self._pid == 0:
            os.environ |= {"TERM": "xterm-256color", "COLORTERM": "truecolor", "HOME": home, "XDG_DATA_HOME": home}
            os.environ["PYTHONPATH"] = f"{REPO}:{REPO / 'tui'}"
            os.execv(sys.executable, [sys.executable, *arguments])
        fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", *SIZE, 0, 0))

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        os.kill(self._pid, 15)
        while self._read(1.0):
            pass
        os.waitpid(self._pid, 0)
        os.close(self._terminal)

    def write(self, text: str) -> None:
        """Type a text, and forget the output so far."""
        self._seen = ""
        os.write(self._terminal, text.encode())

    def until(self, text: str) -> float:
        """Wait until the program has written a text, and return the seconds since its start."""
        deadline = time.perf_counter() + PATIENCE_S
        while text not in self._seen:
            if time.perf_counter() > deadline or not self._read(1.0, blocks=True):
                raise SystemExit(f"{text!r} did not come; the last output was {self._seen[-400:]!r}")
        return time.perf_counter() - self._started

    def read_for(self, seconds: float) -> None:
        """Read the program's output for some seconds."""
        deadline = time.perf_counter() + seconds
        while (left := deadline - time.perf_counter()) > 0:
            self._read(left, blocks=True)

    def _read(self, seconds: float, *, blocks: bool = False) -> bool:
        """Read the output that is there. Return False at its end."""
        if not select.select([self._terminal], [], [], seconds)[0]:
            return blocks
        try:
            content = os.read(self._terminal, 1 << 16)
        except OSError:
            return False
        self._seen = (self._seen + content.decode(errors="replace"))[-20_000:]
        return bool(content)


def spread(values: list[float], unit: str, digits: int) -> str:
    low, middle, high = (f"{value:.{digits}f}" for value in (min(values), statistics.median(values), max(values)))
    return f"{middle} {unit} ({low} to {high})".replace("  ", " ")


if __name__ == "__main__":
    main()
