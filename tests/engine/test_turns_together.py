"""Turns that share passes: each has the tokens, log-probabilities, text and caches that it has alone, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models.cache import RotatingKVCache

from mlxmtp import GenerationOptions, load
from mlxmtp.conversion.convert import Quantization, convert
from mlxmtp.engine.engine import Engine
from mlxmtp.engine.generate import Chunk, TextTurn
from mlxmtp.engine.prefix_cache import PrefixCache
from mlxmtp.engine.scheduler import Scheduler
from mlxmtp.targets import leaf_caches
from tests.engine.programs import Whims
from tests.grids import cases
from tests.scripted import assert_same_state, snapshot

TRAINED = Path(__file__).parent.parent / "trained"
ROOM = 1 << 26
"""Bytes of the prefix cache: it drops caches now and then."""
CHUNK = 16
"""Tokens of a prompt in one pass."""
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
SAMPLED: dict[str, Any] = {"temperature": 0.9, "logit_bias": {2: -100.0}}
KINDS: list[dict[str, Any]] = [
    {"logit_bias": {2: -100.0}},
    {"depth": 0},
    {"depth": 1, "stop": ["e", "7"]},
    SAMPLED | {"seed": 1},
    SAMPLED | {"seed": 2, "verify": "token", "depth": 2, "logprobs": 0},
    SAMPLED | {"seed": 3, "verify": "block", "depth": 5, "top_p": 0.9},
    SAMPLED | {"seed": 4, "verify": "seeded", "top_k": 5, "min_p": 0.02, "depth": 3},
    {"repetition_penalty": 1.3, "frequency_penalty": 0.5, "presence_penalty": 0.2, "logprobs": 3},
    {"json_schema": SCHEMA, "depth": 4},
    SAMPLED | {"json_schema": SCHEMA, "seed": 5},
    {"logprobs": 2, "depth": 3},
]
"""What turns ask for. Where no depth is given, `Whims` plans any, from the head or the text."""
MODELS = ["gemma4", "deepseek_v3", "deepseek_v32", "glm4_moe", "step3p5", "mimo_v2_flash"]
MODELS += ["qwen3_5-float32", "qwen3_5-bfloat16", "qwen3_next-float32", "qwen3_5-4bit", "gemma4-E2B"]
FEW = ("gemma4", "qwen3_5-bfloat16")

Checkpoints = Callable[..., Path]


@pytest.fixture(scope="module", params=cases(MODELS, FEW))
def engine(
    request: pytest.FixtureRequest,
    raw_checkpoint: Checkpoints,
    gemma_checkpoint: Checkpoints,
    assistant: Checkpoints,
    tmp_path_factory: pytest.TempPathFactory,
) -> Engine:
    kind, _, dtype = request.param.partition("-")
    if not dtype:
        return load(TRAINED / kind)
    if kind == "gemma4":
        return load(gemma_checkpoint("gemma4", style=dtype), head=assistant(style=dtype))
    if dtype == "4bit":
        source, folder = raw_checkpoint(kind, dtype="bfloat16"), tmp_path_factory.mktemp("packed") / "mlx"
        return load(convert(source, folder, quantization=Quantization(bits=4, group_size=32), head_bits=4).folder)
    return load(raw_checkpoint(kind, dtype=dtype, layers=2, interval=2))


class Run:
    """Turns that come at random, share a prefix cache and passes, and are cancelled now and then."""

    def __init__(self, engine: Engine, seed: int, count: int) -> None:
        self.engine, self.random = engine, Random(seed)
        self.begin = [self.random.randrange(3, self.vocabulary) for _ in range(60)]
        self.prompts = [self._prompt() for _ in range(count)]
        self.options = [
            GenerationOptions(**self.random.choice(KINDS), max_tokens=self.random.choice((1, 2, 12, 20, 30)))
            for _ in range(count)
        ]

    @property
    def vocabulary(self) -> int:
        return min(self.engine.target.vocab_size, 60)

    @property
    def rounds_by_chunks(self) -> bool:
        """Windows and latents have other bits where a prompt is read in other chunks: nothing is reused."""
        leaves = leaf_caches(self.engine.target.make_cache())
        return bool(self.engine.target.latent) or any(isinstance(leaf, RotatingKVCache) for leaf in leaves)

    def _prompt(self) -> list[int]:
        own = [self.random.randrange(3, self.vocabulary) for _ in range(self.random.randrange(1, 12))]
        prompt = self.begin[: self.random.choice((0, 9, 30, 60))] + own
        return prompt * self.random.choice((1, 1, 2))  # what is repeated is looked up

    def open(self, i: int, cache: PrefixCache) -> TextTurn:
        self.engine.policies.__dict__["_auto"] = Whims(i)
        return self.engine.open_turn(
            self.prompts[i], self.options[i], raw=True, prefix_cache=cache, prefill_tokens=CHUNK
        )

    def alone(self, i: int) -> list[Chunk]:
        s = Scheduler(self.engine.round_loop(), 1)
        (chunks,) = s.run([self.open(i, PrefixCache(ROOM))])
        return chunks

    def together(self, parallel: int) -> tuple[dict[int, list[Chunk]], set[int], int]:
        """The chunks of each turn, those that were cancelled, and the most turns in one round."""
        cache, chunks, widest = PrefixCache(ROOM), dict[int, list[Chunk]](), 0
        cancelled = set[int]()
        s = Scheduler(self.engine.round_loop(), parallel)
        turns: dict[int, TextTurn] = {}
        coming = list(range(len(self.prompts)))
        while coming or not s.idle:
            while coming and (s.idle or self.random.random() < 0.8):
                i = coming.pop(0)
                turns[i] = self.open(i, PrefixCache(ROOM) if self.rounds_by_chunks else cache)
                s.add(i, turns[i])
            held = {i: turns[i].sequence for i in s.active}
            events = [(i, event) for i, event in s.step() if isinstance(event, Chunk)]
            widest = max(widest, len(events))
            for i, event in events:
                chunks.setdefault(i, []).append(event)
                if event.finish_reason:
                    self.check_caches(i, held[i])
            if s.active and self.random.random() < 0.03:
                i = self.random.choice(s.active)
                held = {i: turns[i].sequence}
                s.cancel(i)
                cancelled.add(i)
                if held[i] and not turns[i].reading:
                    self.check_caches(i, held[i])
        return chunks, cancelled, widest

    def check_caches(self, i: int, sequence: Any) -> None:
        """The caches hold what those of a fresh sequence hold that reads the answer's tokens one by one."""
        fresh, target = self.engine.target.make_cache(), self.engine.target
        prompt, read = self.prompts[i][:-1], sequence.tokens[:-1]
        chunks = [prompt[at : at + CHUNK] for at in range(0, len(prompt), CHUNK)]
        for tokens in (*chunks, *([token] for token in read[len(prompt) :])):
            target.forward(mx.array([tokens]), fresh)
        assert_same_state(snapshot(sequence.cache), snapshot(fresh), (i, len(sequence.tokens)))


def seen(chunks: list[Chunk]) -> tuple[Any, ...]:
    """What a turn gave, without the cuts between rounds."""
    return (
        [token for chunk in chunks for token in chunk.tokens],
        [record for chunk in chunks for record in chunk.logprobs],
        "".join(chunk.text for chunk in chunks),
        chunks[-1].finish_reason,
        chunks[-1].stopped_by,
    )


@pytest.mark.parametrize("seed", cases(range(20), default=[0]))
def test_every_turn_is_the_turn_alone(engine: Engine, seed: int) -> None:
    """Greedy and sampled, penalised, biased and constrained, of any depth and length."""
    if engine.why_apart:
        pytest.fail(engine.why_apart)
    run = Run(engine, seed, count=9)
    found, cancelled, widest = run.together(parallel=4)
    assert widest > 1
    for i in range(len(run.prompts)):
        alone, what = run.alone(i), (seed, i, run.options[i])
        if i not in cancelled:
            assert seen(found[i]) == seen(alone), what
        elif i in found:
            tokens = seen(found[i])[0]
            assert tokens == seen(alone)[0][: len(tokens)], what
