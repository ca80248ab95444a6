"""A scripted engine for the real command line, in this process or as `python -m tests.cli.fake`."""

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlxmtp
from mlxmtp.decoding.stats import Stats
from mlxmtp.exactness.guarantee import Guarantee

STATS = Stats(
    prompt_tokens=12,
    reused_tokens=0,
    tokens=0,
    rounds=4,
    drafted=12,
    accepted=9,
    tokens_per_round=2.5,
    acceptance_by_depth=(0.9, 0.75, 0.6),
    ttft_s=0.031,
    prefill_tps=412.0,
    decode_tps=98.7,
    draft_s=0.2,
    verify_s=0.7,
    other_s=0.1,
    peak_memory_bytes=68_000_000,
    evaluations=8,
    timed_rounds=2,
)


@dataclass(frozen=True)
class Chunk:
    text: str
    tokens: tuple[int, ...]
    stats: Stats
    finish_reason: str | None = None


@dataclass
class Engine:
    """Yields `texts`, a chunk each, then stops or raises `ending`. It records its calls."""

    texts: list[str] = field(default_factory=lambda: ["Hello", ", world"])
    ending: BaseException | None = None
    head: str | None = "qwen3_5"
    plain_because: str | None = None
    head_source: Any = None
    stats: Stats = STATS
    pause_s: float = 0.0
    prefill: tuple[tuple[int, int], ...] = ()
    path: Path = Path("models/fake")
    name: str = "fake"
    context: int = 1024
    loaded: list[Any] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)

    guarantee: Guarantee = Guarantee("identical", 8, 1100)  # noqa: RUF009 - it is frozen
    identity: str = "fast"
    draft_vocab: str | None = None
    draft_tokens: list[int] | None = None
    fit: Any = field(default_factory=lambda: SimpleNamespace(warning=lambda: None))

    def load(
        self,
        path_or_repo: str | None = None,
        *,
        mtp: bool = True,
        head: str | None = None,
        identity: str = "fast",
        draft_vocab: str | None = None,
        device: str | None = None,
        on_check: Any = None,
        ranks: Any = None,
    ) -> "Engine":
        self.loaded.append((path_or_repo, mtp))
        self.identity = identity
        self.draft_vocab = draft_vocab
        return self

    def stream(
        self, prompt: str, options: mlxmtp.GenerationOptions, *, raw: bool, on_prefill: Callable[[int, int], None]
    ) -> Iterator[Chunk]:
        self.calls.append({"prompt": prompt, "options": options, "raw": raw})
        for done, total in self.prefill:
            time.sleep(self.pause_s)
            on_prefill(done, total)
        for i, text in enumerate(self.texts):
            time.sleep(self.pause_s)
            last = i + 1 == len(self.texts) and self.ending is None
            yield Chunk(text, (i,), replace(self.stats, tokens=i + 1), "stop" if last else None)
        if self.ending is not None:
            raise self.ending


if __name__ == "__main__":
    from mlxmtp import cli

    cli.GRACE_S = 50.0  # a busy machine may take longer than the product waits for the end of a stopped command
    endless = Engine(texts=[f"word {i}\n" for i in range(10_000)], pause_s=0.001)
    vars(mlxmtp)["load"] = endless.load
    sys.exit(cli.main())
