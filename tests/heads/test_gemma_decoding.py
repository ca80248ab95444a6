"""Gemma 4 decoded with its assistants: greedy tokens are mlx-lm's, and drafts rest on the committed tokens alone."""

from collections.abc import Callable, Iterator
from itertools import repeat
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.cache import KVCache

from mlxmtp import Engine, load
from mlxmtp.conversion.convert import Quantization, convert
from mlxmtp.decoding.loop import generate, never_stop
from mlxmtp.decoding.sampler import Draft, Sampler
from mlxmtp.decoding.sampling import Sampling
from mlxmtp.decoding.sequence import Sequence
from mlxmtp.heads.gemma import DraftPosition
from mlxmtp.targets import SharedKVCache
from tests import tiny
from tests.grids import cases, grid
from tests.running import assert_plain, generated, plain_run, prefilled, reference, rounds
from tests.scripted import Depths, KeepUntil, ScriptedDrafter, assert_same_state, snapshot

WINDOW = 16
STYLES: dict[tiny.Style, tiny.GemmaKind] = {"E2B": "gemma4", "31B": "gemma4_text", "26B-A4B": "gemma4_unified"}
OTHERS = [(style, kind) for style in STYLES for kind in STYLES.values() if kind != STYLES[style]]
FEW = {"vocab": 8, "clusters": 2, "looked_into": 1}
"""With so few tokens, drafts are right now and then."""

Checkpoints = Callable[..., Path]
Engines = Callable[..., Engine]


@pytest.fixture(scope="module")
def pair(gemma_checkpoint: Checkpoints, assistant: Checkpoints) -> Engines:
    """An engine of a style, with its assistant."""

    def make(style: tiny.Style, kind: tiny.GemmaKind | None = None, **options: Any) -> Engine:
        return load(
            gemma_checkpoint(kind or STYLES[style], style=style, **options),
            head=assistant(style=style, unified=kind == "gemma4_unified", **options),
        )

    return make


def prompt_of(engine: Engine, length: int) -> list[int]:
    vocabulary = engine.target.text_model.args.vocab_size
    return np.random.default_rng(length).integers(3, vocabulary, length).tolist()


# -- greedy tokens


@pytest.mark.parametrize("style", STYLES)
def test_greedy_tokens_are_those_of_mlx_lm(pair: Engines, style: tiny.Style) -> None:
    engine = pair(style, **FEW)
    prompt = prompt_of(engine, 12)
    plain = plain_run(engine, prompt, 2 * WINDOW)
    for depth in (1, 4):
        run = assert_plain(engine, prompt, plain, depth)
        assert any(one.accepted for one in run), "the head is not at work"


@pytest.mark.parametrize(("style", "kind"), cases(OTHERS, (OTHERS[0],)))
def test_a_model_is_the_same_under_every_type(pair: Engines, style: tiny.Style, kind: tiny.GemmaKind) -> None:
    engine, prompt = pair(style, kind), prompt_of(pair(style), 12)
    expected = reference(engine, prompt, 20)
    assert len(set(expected)) > 5, "a collapsed reference would prove little"
    assert generated(engine, prompt, 20, 3) == expected == generated(pair(style), prompt, 20, 3)


@pytest.mark.parametrize("style", cases(["E2B", "31B"], default=["E2B"]))
def test_greedy_tokens_in_bfloat16(pair: Engines, style: tiny.Style) -> None:
    engine = pair(style, dtype="bfloat16")
    prompt = prompt_of(engine, 12)
    plain = plain_run(engine, prompt, 2 * WINDOW)
    assert len(set(plain[0])) > 10
    assert_plain(engine, prompt, plain, 4)


@pytest.mark.parametrize("style", cases(STYLES, default=["E2B"]))
def test_greedy_tokens_of_a_packed_trunk(
    gemma_checkpoint: Checkpoints, assistant: Checkpoints, tmp_path: Path, style: tiny.Style
) -> None:
    """Its embeddings are packed too; the assistant, which reads them, is not."""
    raw = gemma_checkpoint(STYLES[style], style=style)
    packed = convert(raw, tmp_path / "packed", quantization=Quantization(bits=4, group_size=32)).folder
    engine = load(packed, head=assistant(style=style))
    assert "scales" in engine.target.embedding
    prompt = prompt_of(engine, 12)
    plain = plain_run(engine, prompt, 24)
    assert len(set(plain[0])) > 10
    assert_plain(engine, prompt, plain, 3)


@pytest.mark.parametrize("style", cases(["E2B", "31B"], default=["E2B"]))
def test_the_other_convention_changes_drafts_and_no_token(pair: Engines, style: tiny.Style) -> None:
    engine = pair(style)
    prompt = prompt_of(engine, 20)
    expected, found = reference(engine, prompt, 16), []
    for position in ("next", "last"):
        assert engine.mtp
        engine.mtp.convention = DraftPosition(position)
        found.append(first_drafts(engine, prefilled(engine, prompt, 1)))
        assert generated(engine, prompt, 16, 2) == expected
    here, there = (mx.where(mx.isfinite(logits), logits, 0) for logits in found)
    assert float(mx.abs(here - there).max()) > 0.1


# -- prompts around the window


LENGTHS = [*(("E2B", length) for length in (1, 2, 15, 16, 17, 18, 40, 250)), ("31B", 17), ("31B", 270)]


@pytest.mark.parametrize(("style", "length"), cases(LENGTHS, [("E2B", 1), ("E2B", 17)]))
def test_prompts_around_the_window(pair: Engines, style: tiny.Style, length: int) -> None:
    """Read at once, and in chunks shorter and longer than the window; with 256 rows, the caches of full layers grow."""
    engine = pair(style, **FEW)
    prompt = prompt_of(engine, length)
    expected = reference(engine, prompt, WINDOW + 4)
    for rows in (2048, 5, 37):
        assert generated(engine, prompt, WINDOW + 4, 1 + length % 4, rows) == expected, rows


class Scripted(ScriptedDrafter):
    """The same for a sequence with an assistant, which loses nothing with the row that it leaves unread."""

    def propose(self, sequence: Sequence, depth: int, law: Sampler) -> Draft:
        sequence.take_pending()
        return super().propose(sequence, depth, law)


@pytest.mark.exhaustive
@pytest.mark.parametrize("depth", cases([0, 1, 4], default=[4]))
def test_after_a_stop_and_a_continuation(pair: Engines, depth: int) -> None:
    """Stop at every place in a round, read a second prompt, go on: as if the whole had been read at once."""
    engine = pair("E2B", **FEW)
    prompt, inside = prompt_of(engine, 6), 0
    truth = prompt + reference(engine, prompt, 28)
    for last in range(15, 16 + depth):  # tokens of the first turn, where the window is full
        sequence = prefilled(engine, prompt, depth)
        if depth:
            drafter = Scripted(truth, repeat(depth), engine.target.text_model.args.vocab_size)
            law, keep = Sampler(Sampling()), KeepUntil(last)
            first = list(generate(engine.target, drafter, sequence, law, Depths(depth), keep, 100))
        else:
            first = list(rounds(engine, sequence, 100, 0, stop_check=KeepUntil(last)))
        inside += len(first[-1].tokens) <= first[-1].accepted
        assert sequence.tokens == truth[: len(prompt) + last]
        assert_same_state(snapshot(sequence.cache), snapshot(plain_run(engine, prompt, last - 1)[1]), last)
        sequence.prefill(prompt_of(engine, 8), 5)
        before = list(sequence.tokens)
        second = [token for one in rounds(engine, sequence, 8, depth) for token in one.tokens]
        assert second == reference(engine, before, 8), last
    assert inside == depth


# -- what the assistant sees

RIGHT = (0, 4, 1, 0, 0, 3, 2, 4, 0, 1)
"""How many of four drafts stand, round after round: 25 tokens."""
STARTS = [1, 9, 15, 16, 40]
ROUNDING = 2e-5
"""Rows of a prefill are summed in the order of time, those of a ring in the ring's."""


def scripted(engine: Engine, prompt: list[int]) -> Iterator[Sequence]:
    """The sequence after its prefill, and after each of the rounds, which leave rejected rows behind."""
    truth = prompt + reference(engine, prompt, 40)
    sequence = prefilled(engine, prompt, 1)
    if len(prompt) > 1:  # or there is nothing to see yet
        yield sequence
    drafter = Scripted(truth, RIGHT, engine.target.text_model.args.vocab_size)
    run = generate(engine.target, drafter, sequence, Sampler(Sampling()), Depths(4), never_stop, 1000)
    for right, one in zip(RIGHT, run, strict=False):
        assert one.accepted == right
        assert sequence.tokens == truth[: len(sequence.tokens)]
        yield sequence


def seen(shared: SharedKVCache) -> tuple[mx.array, mx.array]:
    """The keys and values that one row sees, by position."""
    layer: Any = shared._layer
    (keys, values), mask = shared.fetch(1)
    if isinstance(layer, KVCache):
        order = mx.arange(keys.shape[2])
    else:
        order = layer._temporal_order(mx.arange(keys.shape[2])[None, None, :, None]).flatten()
    shown = [True] * keys.shape[2] if mask is None else mask.flatten().tolist()
    rows = mx.array([slot for slot in order.tolist() if shown[slot]])
    return keys[:, :, rows], values[:, :, rows]


@pytest.mark.parametrize(
    ("style", "length"),
    grid(["E2B", "31B"], STARTS, default=lambda style, length: length == (1 if style == "E2B" else 16)),
)
def test_an_assistant_sees_the_committed_rows_alone(pair: Engines, style: tiny.Style, length: int) -> None:
    """Compared with caches that keep every row: all of them in full layers, a window less the next row in sliding ones.

    Neighbouring rows differ by far more than rounding, so that a row too many, or one too old, would be seen.
    """
    engine = pair(style)
    sliding, full = (1, 2) if style == "E2B" else (4, 5)  # the last layers of their kinds with keys of their own
    for sequence in scripted(engine, prompt_of(engine, length)):
        count = len(sequence.tokens) - 1
        every = [KVCache() for _ in sequence.cache]
        engine.target.forward(mx.array([sequence.tokens[:-1]]), every)
        for shared, owner in zip(sequence.head_cache, (sliding, sliding, full), strict=True):
            first = max(count - WINDOW + 1, 0) if owner == sliding else 0
            kept = every[owner].keys[:, :, first:count], every[owner].values[:, :, first:count]
            for one, other in zip(seen(shared), kept, strict=True):
                assert one.shape == other.shape
                assert float(mx.abs(one - other).max()) < ROUNDING
                assert count < 2 or float(mx.abs(other[:, :, 1:] - other[:, :, :-1]).max(axis=(1, 3)).min()) > 0.1


@pytest.mark.parametrize("length", cases(STARTS, (15,)))
def test_rows_after_rejections_are_those_of_plain_decoding(pair: Engines, length: int) -> None:
    """Bit for bit, where both began with the same prefill."""
    engine = pair("E2B")
    prompt = prompt_of(engine, length)
    for sequence in scripted(engine, prompt):
        plain = prefilled(engine, prompt, 1)
        for token in sequence.tokens[length - 1 : -1]:
            engine.target.forward(mx.array([[token]]), plain.cache)
        for shared, other in zip(sequence.head_cache, plain.head_cache, strict=True):
            assert shared.offset == other.offset == len(sequence.tokens) - 1
            for one, two in zip(seen(shared), seen(other), strict=True):
                assert mx.array_equal(one, two)


@pytest.mark.parametrize(
    ("style", "length"),
    grid(["E2B", "31B"], STARTS, default=lambda style, length: length == (15 if style == "E2B" else 16)),
)
def test_the_next_draft_depends_on_the_tokens_alone(pair: Engines, style: tiny.Style, length: int) -> None:
    """After rounds of every length, as after a prefill of the same tokens."""
    engine = pair(style)
    for sequence in scripted(engine, prompt_of(engine, length)):
        after = first_drafts(engine, sequence)
        fresh = first_drafts(engine, prefilled(engine, sequence.tokens, 1))
        assert mx.array_equal(mx.argmax(after, axis=-1), mx.argmax(fresh, axis=-1))
        assert mx.allclose(after, fresh, atol=1e-4)


def first_drafts(engine: Engine, sequence: Sequence) -> mx.array:
    """The logits [1, 3, V] of three drafts; the sequence loses its pending row."""
    pending = sequence.take_pending()
    assert pending
    assert engine.mtp
    hidden, tokens = pending
    logits = []
    for _ in range(3):
        states = engine.mtp(hidden, tokens, sequence.head_cache)
        logits.append(engine.mtp.logits(states))
        hidden, tokens = engine.mtp.next_hidden(states), mx.argmax(logits[-1], axis=-1)
    return mx.concatenate(logits, axis=1)
