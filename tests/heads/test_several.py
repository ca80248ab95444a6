"""Heads of several layers, Step-3.5's and MiMo-V2-Flash's: each layer's rows, drafts taken back, every layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlxmtp import Engine, GenerationOptions, load
from mlxmtp.conversion.attach import attach
from mlxmtp.conversion.convert import Quantization, convert
from mlxmtp.conversion.inspect import inspect
from mlxmtp.decoding import sequence as decoding_sequence
from mlxmtp.decoding.depth import FixedDepth
from mlxmtp.decoding.draft import MTPChain
from mlxmtp.decoding.loop import RoundLoop, Turn, generate, never_stop
from mlxmtp.decoding.sampler import Sampler
from mlxmtp.decoding.sampling import Sampling
from mlxmtp.decoding.sequence import Sequence
from mlxmtp.errors import HeadError
from mlxmtp.heads import narrowed as narrowing
from mlxmtp.heads.families import family_of
from mlxmtp.heads.several import LayerChain
from mlxmtp.limits import MAX_DEPTH
from mlxmtp.targets import RecentKVCache, states
from tests import tiny
from tests.comparing import assert_equal, head_of
from tests.grids import cases
from tests.heads import layer_formulas as formulas
from tests.running import assert_plain, plain_run, prefilled, rounds
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
    known, rows, passed, found = np.concatenate([tokens, drafts]), hidden, hidden, []
    for step in range(len(drafts) + 1):
        k = min(step, len(layers) - 1)
        if step >= len(layers):  # the last layer goes on behind its rows
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
    for hidden, tokens in pieces[:-1]:
        chain.read([hidden], [tokens])
    (hidden, tokens) = pieces[-1]
    found = [chain.layer.logits(chain.begin([hidden], [tokens])[0])[0, 0]]
    for step in range(1, drafts.shape[1] + 1):
        states = chain.draft([[drafts[:, i : i + 1] for i in range(step)]])
        found.append(chain.layer.logits(states[0])[0, 0])
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
            pieces = [(hidden[:, a:b], tokens[:, a:b]) for a, b in pairwise(edges)]
            if pieces[1:]:
                drafted(engine, cache, pieces[:-1], 23 - drafts)
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


def test_a_plain_stretch_is_read_before_the_next_draft(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Now and then while it lasts, and the rest with the draft."""
    monkeypatch.setattr(decoding_sequence, "READ_EVERY", 8)
    truth = forced(engine, PROMPT, 24).truth
    sequence = prefilled(engine, PROMPT, DEPTH)
    for _ in generate(engine.target, None, sequence, Sampler(Sampling()), FixedDepth(0), never_stop, 21):
        assert sum(states.shape[1] for states in sequence._pending) <= 8
    laws = Forced(truth, 2), Forced(truth, 2)
    for one, law in zip((sequence, prefilled(engine, sequence.tokens, DEPTH)), laws, strict=True):
        MTPChain(engine.mtp).propose(one, DEPTH, law)
    assert_close(logits_of(laws[0]), logits_of(laws[1]), "a plain stretch")


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


@pytest.mark.parametrize("length", cases([1, 12, 70], default=()))
@pytest.mark.parametrize("chunk", [5, 2048])
def test_200_greedy_tokens_are_those_of_mlx_lm(engine: Engine, length: int, chunk: int) -> None:
    prompt = np.random.default_rng(length).integers(3, 24, length).tolist()
    plain = plain_run(engine, prompt, 200, chunk)
    assert len(set(plain[0])) > 5, "a collapsed reference would prove little"
    for depth in range(5):
        assert_plain(engine, prompt, plain, depth, chunk)


def test_drafts_of_a_narrowed_vocabulary(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each layer's own output matrix is narrowed, and follows the vocabulary when that changes."""
    for name, value in (("FIRST_TOKENS", 12), ("MAX_OTHERS", 4), ("MIN_SAVING", 0.0)):
        monkeypatch.setattr(narrowing, name, value)
    found = narrowing.narrowed_logits(engine.mtp, engine.target, special=[14])
    assert found
    for others in ((), (20, 16)):
        found.vocabulary.add(others)
        allowed = {*range(12), 14, *others}
        laws = Forced(PROMPT * 5), Forced(PROMPT * 5)
        for law, narrowed in zip(laws, (None, found), strict=True):
            MTPChain(engine.mtp, narrowed).propose(prefilled(engine, PROMPT, DEPTH), DEPTH, law)
        (_, _, whole), (_, _, few) = (logits_of(law)[0] for law in laws)
        assert few.shape == (DEPTH, 24)
        for token in range(24):
            expected = whole[:, token] if token in allowed else mx.full(DEPTH, -mx.inf)
            assert mx.allclose(few[:, token], expected, atol=CLOSE), (others, token)


def test_a_draft_vocabulary_is_every_layers(several_checkpoint: Checkpoints, kind: str) -> None:
    engine = load(several_checkpoint(kind, vocab=24))
    engine.mtp.restrict_vocab([4, 6, 16])
    law = Forced(PROMPT * 5)
    MTPChain(engine.mtp).propose(prefilled(engine, PROMPT, DEPTH), DEPTH, law)
    finite = mx.isfinite(logits_of(law)[0][2])
    assert finite.tolist() == [[token in (4, 6, 16) for token in range(24)]] * DEPTH


def test_seeded_tokens_are_those_of_plain_decoding(engine: Engine) -> None:
    plain, *found = (
        [t for one in rounds(engine, prefilled(engine, PROMPT, d), 24, d, Sampling(1.0, seed=5)) for t in one.tokens]
        for d in (0, 1, 4)
    )
    assert found == [plain, plain]


# -- kept and read back


def test_a_head_that_was_kept_drafts_as_before(engine: Engine) -> None:
    """From a fork, from a snapshot of the end, and from one that was taken while the prompt was read."""
    sampler = forced(engine, PROMPT, 30)
    one = turn(engine, PROMPT, sampler, 30)
    run(engine, [one])
    kept, truth = one.sequence, sampler.truth
    last = kept.snapshot
    copies = [kept.fork(), Sequence.from_snapshots(engine.target, engine.mtp, kept.prefix_info, [], last), kept]
    found = []
    for sequence in copies:
        law = Forced(truth, 2)
        MTPChain(engine.mtp).propose(sequence, DEPTH, law)
        found.append(logits_of(law))
    for other in found:
        assert_close(other, found[-1], "kept")
    long = Sequence(engine.target, engine.mtp)
    long.prefill(truth, 7, boundaries=(20,))
    for number, count in enumerate((20, len(truth) - 1)):
        prompt = [*truth[:20], 5, 7, 11] if number == 0 else [*truth, 5]
        position = long.prefix_info.longest_reusable_prefix(prompt, drafting=True)
        assert position is not None
        assert position.offset == count
        again, fresh = long.fork_at(prompt, position, drafting=True), Sequence(engine.target, engine.mtp)
        again.prefill(prompt[len(again.tokens) :])
        fresh.prefill(prompt)
        laws = Forced([*prompt, *truth]), Forced([*prompt, *truth])
        for sequence, law in zip((again, fresh), laws, strict=True):
            MTPChain(engine.mtp).propose(sequence, DEPTH, law)
        assert_close(logits_of(laws[0]), logits_of(laws[1]), position)


def test_layers_with_all_keys_are_cut_each_to_its_own_rows(several_checkpoint: Checkpoints, tmp_path: Path) -> None:
    """Full attention in the head: its caches can be cut, later layers hold fewer rows, and a row waits for each."""
    folder = tmp_path / "full"
    tiny.several_checkpoint(folder, "step3p5", vocab=24, sliding_heads=4)
    config = json.loads((folder / "config.json").read_text())
    types = config["layer_types"][:2] + ["full_attention"] * 3
    tiny.write_json(folder / "config.json", config | {"layer_types": types})
    engine = load(folder)
    truth = forced(engine, PROMPT, 30).truth
    long = Sequence(engine.target, engine.mtp)
    long.prefill(truth, 7, boundaries=(20,))
    prompt = [*truth[:20], 5, 7, 11]
    position = long.prefix_info.longest_reusable_prefix(prompt, drafting=True)
    again, fresh = long.fork_at(prompt, position, drafting=True), Sequence(engine.target, engine.mtp)
    again.prefill(prompt[len(again.tokens) :])
    fresh.prefill(prompt)
    assert position.offset == 20
    assert [leaf.offset for leaf in again.head_cache[:3]] == [21, 20, 19]
    assert_same_state(snapshot(again.head_cache), snapshot(fresh.head_cache))


def test_a_window_in_the_order_of_time_is_whole_after_trims() -> None:
    """Against all rows: appended in passes of any length, taken back over several passes, kept and restored."""
    rng, cache, rows = np.random.default_rng(0), RecentKVCache(WINDOW), np.zeros((0, 4))
    for number in range(200):
        counts = [int(rng.integers(1, 9)), *[1] * int(rng.integers(0, MAX_DEPTH + 1))]  # the target's rows, then drafts
        before = len(rows) + counts[0]
        for count in counts:
            new = rng.normal(size=(count, 4))
            rows = np.concatenate([rows, new])
            seen = rows[-(WINDOW - 1 + count) :]
            keys, values = cache.update_and_fetch(mx.array(new)[None, None], -mx.array(new)[None, None])
            assert np.array_equal(np.array(keys[0, 0]), seen.astype(np.float32)), number
            assert mx.array_equal(values, -keys)
        cache.trim(len(rows) - before)
        rows = rows[:before]
        assert cache.offset == before
        if number % 5 == 4:
            other = RecentKVCache(WINDOW)
            states.restore(other, states.snapshot(cache))
            cache = other
    cache.trim(cache.offset)
    assert cache.offset == 0


# -- layouts


def test_the_head_is_the_same_converted_attached_and_read_back(
    several_checkpoint: Checkpoints, tmp_path: Path, kind: str
) -> None:
    raw = several_checkpoint(kind, vocab=24)
    converted = convert(raw, tmp_path / "mlx").folder
    assert_equal(head_of(converted), head_of(raw))
    stripped = convert(several_checkpoint(kind, vocab=24, head=False), tmp_path / "stripped").folder
    attach(stripped, str(raw))
    assert_equal(head_of(stripped), head_of(raw))
    report = inspect(stripped)
    assert report.speculates
    assert report.head is not None
    norms = "shifted" if kind == "step3p5" else "plain"
    assert (report.head.family, report.head.layers, report.head.norms) == (family_of(kind).name, 3, norms)
    tokens = load(raw).generate(PROMPT, GenerationOptions(max_tokens=8)).tokens
    for folder in (converted, stripped):
        assert load(folder).generate(PROMPT, GenerationOptions(max_tokens=8)).tokens == tokens
    assert_equal(*map(head_of, tiny.fp8_twins(several_checkpoint(kind, dtype="bfloat16"), tmp_path / "fp8")))
    whole = convert(raw, tmp_path / "packed", quantization=Quantization(bits=8, group_size=32), head_bits=8).folder
    packed = load(whole)
    assert_plain(packed, PROMPT, plain_run(packed, PROMPT, 12), 4)


def test_lists_of_step_may_end_with_the_trunk(several_checkpoint: Checkpoints, tmp_path: Path) -> None:
    """Layers that they do not name slide, with the rotation of the trunk's sliding layers."""
    whole, folder = several_checkpoint("step3p5", vocab=24), tmp_path / "short"
    tiny.several_checkpoint(folder, "step3p5", vocab=24)
    config = json.loads((folder / "config.json").read_text())
    short = {key: config[key][:2] for key in ("layer_types", "rope_theta", "partial_rotary_factors", "swiglu_limits")}
    tiny.write_json(folder / "config.json", config | short)
    one, other = load(whole), load(folder)
    rows, drafts = random_rows(one, 3), random_rows(one, 4, DEPTH)[1]
    found = [mx.stack(drafted(engine, engine.mtp.make_cache([]), [rows], drafts)) for engine in (one, other)]
    assert mx.array_equal(*found)


REFUSED: list[tuple[str, Callable[[dict[str, Any]], dict[str, Any]], str]] = [
    ("step3p5", lambda w: without(w, "layers.3."), "layer 1 of 3 is missing"),
    ("step3p5", lambda w: without(w, "layers.4."), "layer 2 of 3 is missing"),
    ("step3p5", lambda w: without(w, "layers.3.eh_proj"), "have no eh_proj.weight"),
    (
        "step3p5",
        lambda w: without(w, "layers.4.self_attn.g_proj"),
        r"layers.2.block.self_attn.g_proj.weight is missing",
    ),
    (
        "step3p5",
        lambda w: w | {"model.layers.2.odd.weight": w["model.norm.weight"]},
        "unknown tensor layers.0.block.odd",
    ),
    (
        "step3p5",
        lambda w: shortened(w, "layers.3.mlp.up_proj.weight"),
        r"up_proj.weight is \(95, 64\), expected \(96, 64\)",
    ),
    ("mimo_v2_flash", lambda w: without(w, "mtp.layers.0."), "layer 0 of 3 is missing"),
    ("mimo_v2_flash", lambda w: fused(w), "layer 1 has one qkv_proj"),
    ("mimo_v2_flash", lambda w: without(w, "mtp.layers.1.self_attn.attention_sink"), "attention_sink_bias is missing"),
]


def without(weights: dict[str, Any], part: str) -> dict[str, Any]:
    return {name: weight for name, weight in weights.items() if part not in name}


def shortened(weights: dict[str, Any], end: str) -> dict[str, Any]:
    return {name: weight[1:] if name.endswith(end) else weight for name, weight in weights.items()}


def fused(weights: dict[str, Any]) -> dict[str, Any]:
    place = "model.mtp.layers.1.self_attn."
    parts = mx.concatenate([weights[f"{place}{part}_proj.weight"] for part in "qkv"])
    return {name: w for name, w in weights.items() if not name.startswith(place) or "o_proj" in name} | {
        f"{place}qkv_proj.weight": parts
    }


def test_incomplete_heads_are_refused(several_checkpoint: Checkpoints, tmp_path: Path) -> None:
    for number, (kind, change, message) in enumerate(REFUSED):
        folder = tmp_path / str(number)
        tiny.several_checkpoint(folder, kind, vocab=24)
        tiny.save_weights(folder, change(tiny.load_weights(folder)), made_by="pt")
        with pytest.raises(HeadError, match=message):
            load(folder)
