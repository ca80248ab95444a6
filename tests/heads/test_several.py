"""Heads of several layers, Step-3.5's and MiMo-V2-Flash's: each layer's rows, drafts that are taken back, all layouts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlxmtp import Engine, load
from mlxmtp.conversion.attach import attach
from mlxmtp.conversion.convert import convert
from mlxmtp.conversion.inspect import inspect
from mlxmtp.decoding.depth import FixedDepth
from mlxmtp.decoding.draft import MTPChain
from mlxmtp.decoding.loop import RoundLoop, Turn, never_stop
from mlxmtp.decoding.sampler import Sampler
from mlxmtp.decoding.sampling import Sampling
from mlxmtp.decoding.sequence import Sequence
from mlxmtp.errors import HeadError
from mlxmtp.heads.families import family_of
from mlxmtp.heads.several import LayerChain
from mlxmtp.targets import RecentKVCache
from tests import tiny
from tests.comparing import assert_equal, head_of
from tests.grids import grid
from tests.heads import layer_formulas as formulas
from tests.running import assert_plain, generated, plain_run, prefilled, rounds
from tests.scripted import assert_same_state, snapshot

Checkpoints = Callable[..., Path]
WINDOW = tiny.SeveralSizes.window
LENGTH, DEPTH = 3 * WINDOW, 4
"""Rows past the window; drafts past the layers, so that the last layer runs twice."""
CLOSE = 2e-5
"""Rounding of float32 in hidden states and logits of up to 8."""


@pytest.fixture(scope="module", params=tiny.SEVERAL_KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def engine(kind: str, several_checkpoint: Checkpoints) -> Engine:
    return load(several_checkpoint(kind, vocab=24))


def layers_of(folder: Path, kind: str) -> tuple[list[formulas.Layer], list[Callable[[np.ndarray], np.ndarray]]]:
    """Return the formulas of a checkpoint's layers, and of their logits."""
    config = json.loads((folder / "config.json").read_text())
    w = {name: np.array(weight.astype(mx.float32), np.float64) for name, weight in tiny.load_weights(folder).items()}
    step = kind == "step3p5"
    prefixes = [f"model.layers.{2 + k}." if step else f"model.mtp.layers.{k}." for k in range(3)]
    own = [{name.removeprefix(p): weight for name, weight in w.items() if name.startswith(p)} for p in prefixes]
    layer = formulas.step_layer if step else formulas.mimo_layer
    embed, output = w["model.embed_tokens.weight"], w["lm_head.weight"]
    logits = [
        (lambda rows, own=one: formulas.step_logits(own, rows))
        if step
        else (lambda rows, own=one: formulas.mimo_logits(own, output, rows))
        for one in own
    ]
    return [layer(one, embed, config) for one in own], logits


def drafted_by_formula(
    folder: Path, kind: str, hidden: np.ndarray, tokens: np.ndarray, drafts: np.ndarray, convention: Any
) -> list[np.ndarray]:
    """Return the logits of each draft step, from whole sequences: hidden [L, H], the tokens [L] after, the drafts."""
    layers, logits = layers_of(folder, kind)
    if convention.layers == "first":
        layers = layers[:1]
    known, rows, found = np.concatenate([tokens, drafts]), hidden, []
    for step in range(len(drafts) + 1):
        k = min(step, len(layers) - 1)
        if step < len(layers):
            ran = layers[k](rows, known[step : step + len(rows)])
        else:  # the last layer goes on behind its rows
            rows = np.concatenate([rows, passed[-1:]])
            ran = layers[k](rows, known[k : k + len(rows)])
        found.append(logits[k](ran[-1]))
        passed = ran
        if convention.recycled == "post":
            passed = formulas.rms_norm(ran, last_norm(folder, kind, k))
        if step + 1 < len(layers) and convention.layers != "target":
            rows = passed
    return found


def last_norm(folder: Path, kind: str, k: int) -> np.ndarray:
    weights = tiny.load_weights(folder)
    if kind == "step3p5":
        return np.array(weights[f"model.layers.{2 + k}.transformer.shared_head.norm.weight"]) + 1
    return np.array(weights[f"model.mtp.layers.{k}.final_layernorm.weight"])


def random_rows(engine: Engine, seed: int, count: int = LENGTH) -> tuple[mx.array, mx.array]:
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(1, count, engine.target.text_model.args.hidden_size)).astype(np.float32)
    return mx.array(hidden), mx.array(rng.integers(3, 24, (1, count)), mx.uint32)


def drafted(engine: Engine, cache: list[Any], pieces: list[tuple[mx.array, mx.array]], drafts: mx.array) -> Any:
    """Return the logits of each draft step after rows in pieces; the drafts are taken back."""
    chain = LayerChain(engine.mtp, [cache])
    for hidden, tokens in pieces:
        states = chain.read([hidden], [tokens])
    found = [chain.layer.logits(states[0][:, -1:])[0, 0]]
    for step in range(1, drafts.shape[1] + 1):
        states = chain.draft([[drafts[:, i : i + 1] for i in range(step)]])
        found.append(chain.layer.logits(states[0][:, -1:])[0, 0])
    chain.take_back()
    return found


def test_every_draft_equals_the_formula(engine: Engine, kind: str, several_checkpoint: Checkpoints) -> None:
    """At depths 1 to 5, past the window, by every convention, whatever pieces the rows came in; twice, after drafts."""
    folder, original = several_checkpoint(kind, vocab=24), engine.mtp.convention
    hidden, tokens = random_rows(engine, 1)
    for convention in family_of(kind).conventions:
        engine.mtp.convention = convention
        for edges in ((0, LENGTH), (0, 1, 2, 3, 7, LENGTH - 1, LENGTH), (0, 1), (0, 1, 2)):
            cache, drafts = engine.mtp.make_cache([]), random_rows(engine, 2, DEPTH)[1]
            pieces = [(hidden[:, a:b], tokens[:, a:b]) for a, b in zip(edges, edges[1:], strict=False)]
            drafted(engine, cache, pieces[:-1], 23 - drafts) if len(pieces) > 1 else None
            found = drafted(engine, cache, pieces[-1:], drafts)
            rows = np.array(hidden[0, : edges[-1]], np.float64), np.array(tokens[0, : edges[-1]])
            expected = drafted_by_formula(folder, kind, *rows, np.array(drafts[0]), convention)
            for step, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
                assert np.abs(np.array(ours) - theirs).max() < CLOSE, (convention, edges, step)
    engine.mtp.convention = original


# -- in rounds


class Forced(Sampler):
    """A greedy sampler whose drafts are right up to a number that changes from round to round, then wrong.

    Args:
        truth: the prompt, and the tokens of plain decoding after it.
        first: right drafts of the first round.

    Attributes:
        rounds: for each round its position, the drafts that were right, and the head's logits at each depth.
    """

    def __init__(self, truth: list[int], first: int = 0) -> None:
        super().__init__(Sampling())
        self.truth, self.first = truth, first
        self.rounds: list[tuple[int, int, list[mx.array]]] = []

    def draw_draft(self, logits: mx.array, position: int, drafts: Any) -> tuple[mx.array, None]:
        if not drafts:
            self.rounds.append((position, (self.first + len(self.rounds)) % (DEPTH + 2), []))
        _, right, found = self.rounds[-1]
        found.append(logits)
        token = self.truth[position + len(drafts)]
        return mx.array([token if len(drafts) < right else (token + 1) % 24], mx.uint32), None


def forced(engine: Engine, prompt: list[int], count: int) -> Forced:
    return Forced(prompt + plain_run(engine, prompt, count + DEPTH)[0])


def turn(engine: Engine, prompt: list[int], sampler: Sampler, count: int) -> Turn:
    sequence = prefilled(engine, prompt, DEPTH, 5)
    return Turn(sequence, MTPChain(engine.mtp), sampler, FixedDepth(DEPTH), never_stop, count)


def run(engine: Engine, turns: list[Turn]) -> None:
    loop = RoundLoop(engine.target)
    while left := [one for one in turns if not one.finish]:
        loop.round(left)


def logits_of(one: Forced) -> list[tuple[int, int, mx.array]]:
    return [(position, right, mx.concatenate(found)) for position, right, found in one.rounds]


def assert_close(ours: list[tuple[int, int, mx.array]], theirs: list[tuple[int, int, mx.array]], what: object) -> None:
    assert [one[:2] for one in ours] == [other[:2] for other in theirs], what
    for (position, right, found), (_, _, expected) in zip(ours, theirs, strict=True):
        assert found.shape == expected.shape, (what, position, right)
        assert float(mx.abs(found - expected).max()) < CLOSE, (what, position, right)


PROMPT = [20, 16, 13, 8, 9, 3, 4, 3, 6, 20, 16, 22]


def test_drafts_after_every_rejection_are_those_of_a_fresh_read(engine: Engine) -> None:
    """Rows of rejected drafts leave no trace, and those of accepted ones are read anew with the target's states."""
    sampler = forced(engine, PROMPT, 48)
    one = turn(engine, PROMPT, sampler, 48)
    run(engine, [one])
    assert one.sequence.tokens[: len(sampler.truth)] == sampler.truth[: len(one.sequence.tokens)]
    full = [drafted for drafted in logits_of(sampler) if len(drafted[2]) == DEPTH]
    assert len({right for _, right, _ in full}) == DEPTH + 2
    for position, right, found in full[1::2]:
        fresh = Forced(sampler.truth, right)
        sequence = prefilled(engine, sampler.truth[:position], DEPTH)
        MTPChain(engine.mtp).propose(sequence, DEPTH, fresh)
        assert_close([(position, right, found)], logits_of(fresh), "a fresh read")


def test_turns_that_share_passes_draft_as_each_alone(engine: Engine) -> None:
    """From the first tokens of a text on, where later layers have no rows, and with pending states of any number."""
    prompts = [PROMPT[:1], PROMPT[1:3], PROMPT[2:5], PROMPT, PROMPT * 3]
    alone = [forced(engine, prompt, 24) for prompt in prompts]
    together = [Forced(one.truth) for one in alone]
    for prompt, sampler in zip(prompts, alone, strict=True):
        run(engine, [turn(engine, prompt, sampler, 24)])
    turns = [turn(engine, prompt, sampler, 24) for prompt, sampler in zip(prompts, together, strict=True)]
    run(engine, turns)
    for prompt, one, other, ended in zip(prompts, alone, together, turns, strict=True):
        assert ended.sequence.tokens == one.truth[: len(ended.sequence.tokens)]
        assert_close(logits_of(other), logits_of(one), len(prompt))
