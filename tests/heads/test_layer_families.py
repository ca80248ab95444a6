"""Heads of one layer, every family by the same tests: mlx-lm's tokens, rejections, storage, refusals, shared passes.

A family is an entry of `tiny.LAYER_KINDS`, and a golden folder in test_parity.py or a reference in REFERENCES here.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlxmtp import Engine, GenerationOptions, load
from mlxmtp.conversion.attach import attach
from mlxmtp.conversion.convert import Quantization, convert
from mlxmtp.conversion.inspect import inspect
from mlxmtp.decoding.draft import MTPChain
from mlxmtp.decoding.loop import generate, never_stop
from mlxmtp.decoding.sampler import Draft, Sampler
from mlxmtp.decoding.sampling import Sampling
from mlxmtp.decoding.sequence import Sequence
from mlxmtp.engine.prefix_cache import PrefixCache
from mlxmtp.errors import HeadError
from mlxmtp.heads.families import family_of
from tests import tiny
from tests.comparing import assert_equal, head_of
from tests.grids import cases
from tests.heads import reference_hybrid, reference_latent
from tests.heads.test_parity import DEPTHS, HEAD_TOLERANCE, TRUNK_TOLERANCE, depths, difference
from tests.running import assert_plain, plain_run, prefilled, reference
from tests.scripted import Depths, assert_same_state, one_hot, snapshot

KINDS = list(tiny.LAYER_KINDS)
FEW = ("ernie4_5_moe", "exaone_moe", "longcat_flash_ngram", "nemotron_h")
"""Names of their own, a window, latents beside n-grams, Mamba: the kinds of the default run. Others add no kill."""
few = pytest.mark.parametrize("kind", cases(KINDS, default=FEW), indirect=True, scope="module")
VOCAB = tiny.LAYER_SIZES["vocab_size"]
PROMPT = np.random.default_rng(3).integers(3, VOCAB, 20).tolist()
"""Past the windows of the tiny models, which hold `tiny.WINDOW` tokens."""
CHUNK = 7
DEPTH = 4
RIGHT = (0, 4, 1, 3, 2, 0, 4, 1)
"""How many of four drafts are right, round after round: 23 tokens."""
ROUNDING = 1e-4
"""Of logits, where rows were summed in another order."""
SAMPLED = GenerationOptions(max_tokens=12, temperature=0.9, seed=7, depth=2)
GREEDY = GenerationOptions(max_tokens=12, depth=3)

Checkpoints = Callable[..., Path]
Reference = Callable[[Path, mx.array, mx.array], dict[str, mx.array]]
REFERENCES: dict[str, Reference] = {
    "bailing_moe": reference_latent.ling,
    "longcat_flash": reference_latent.longcat,
    "longcat_flash_ngram": reference_latent.longcat,
    "bailing_hybrid": reference_hybrid.ling,
    "kimi_k3": reference_hybrid.kimi,
}
"""By kind: trunk and head in float64, of a folder, tokens [1, S] and tokens [1, 2] after them. The names of the arrays
are those of a golden file (scripts/make_goldens.py)."""


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def engine(kind: str, layer_checkpoint: Checkpoints) -> Engine:
    loaded = load(layer_checkpoint(kind))
    assert loaded.head == family_of(kind).name, loaded.plain_because
    return loaded


# -- tokens


def test_greedy_tokens_are_those_of_mlx_lm(engine: Engine) -> None:
    """Read in chunks, past the windows; and the caches, bit for bit."""
    plain = plain_run(engine, PROMPT, 24, CHUNK)
    assert len(set(plain[0])) > 5, "a collapsed reference would prove little"
    for depth in (0, 3):
        assert_plain(engine, PROMPT, plain, depth, CHUNK)


@pytest.mark.exhaustive
@pytest.mark.parametrize("length", [1, 2, 8, 9, 20, 270])
def test_greedy_tokens_over_200(engine: Engine, length: int) -> None:
    prompt, drafted = np.random.default_rng(length).integers(3, VOCAB, length).tolist(), 0
    for rows in (CHUNK, 2048):
        plain = plain_run(engine, prompt, 200, rows)
        for depth in range(5):
            drafted += sum(one.drafted for one in assert_plain(engine, prompt, plain, depth, rows))
    assert drafted, "the head is not at work"


@dataclass
class Forced:
    """The head's chain; its drafts are replaced by right ones up to `right`, and wrong ones from there on."""

    chain: MTPChain
    truth: list[int]
    right: list[int]

    def propose(self, sequence: Sequence, depth: int, sampler: Sampler) -> Draft:
        self.chain.propose(
            sequence, depth, sampler
        )  # the head reads the rows of tokens, and takes those of drafts back
        right = self.right.pop(0)
        truth = self.truth[len(sequence.tokens) : len(sequence.tokens) + depth]
        tokens = [token if i < right else (token + 1) % VOCAB for i, token in enumerate(truth)]
        return Draft(mx.array([tokens], mx.uint32), [one_hot(token, VOCAB) for token in tokens])


def next_drafts(engine: Engine, sequence: Sequence) -> mx.array:
    """Return the logits [1, 3, V] of three drafts; the sequence loses its pending rows."""
    pending = sequence.take_pending()
    assert pending
    assert engine.mtp
    hidden, tokens = pending
    logits = []
    for _ in range(3):
        states = engine.mtp(hidden, tokens, sequence.head_cache)[:, -1:]
        logits.append(engine.mtp.logits(states))
        hidden, tokens = engine.mtp.next_hidden(states), mx.argmax(logits[-1], axis=-1)
    return mx.concatenate(logits, axis=1)


def test_forced_rejections_leave_the_accepted_tokens_alone(engine: Engine) -> None:
    """At every place of a round: the trunk's caches are plain decoding's, and the next drafts a fresh sequence's."""
    assert engine.mtp
    plain = reference(engine, PROMPT, sum(RIGHT) + len(RIGHT), CHUNK)
    sequence = prefilled(engine, PROMPT, 1, CHUNK)
    drafter = Forced(MTPChain(engine.mtp), PROMPT + plain + [3] * DEPTH, [*RIGHT])
    run = generate(engine.target, drafter, sequence, Sampler(Sampling()), Depths(DEPTH), never_stop, 1000)
    for right, one in zip(RIGHT, run, strict=False):
        assert one.accepted == right
    assert sequence.tokens == PROMPT + plain
    assert_same_state(snapshot(sequence.cache), snapshot(plain_run(engine, PROMPT, len(plain) - 1, CHUNK)[1]))
    found, fresh = next_drafts(engine, sequence), next_drafts(engine, prefilled(engine, sequence.tokens, 1))
    assert float(mx.abs(found - fresh).max()) < ROUNDING


@few
def test_turns_that_share_passes_have_the_tokens_of_each_alone(engine: Engine) -> None:
    assert engine.why_apart is None
    prompts = [PROMPT, PROMPT[:5], PROMPT[3:16]]
    for options in (GREEDY, SAMPLED):
        found = engine.batch(prompts, options, raw=True, parallel=3, prefix_cache=PrefixCache(0))
        alone = [engine.generate(prompt, options, raw=True) for prompt in prompts]
        assert [one.tokens for one in found] == [one.tokens for one in alone]
        assert any(one.stats.drafted for one in found)


@few
def test_a_seed_gives_the_tokens_of_plain_decoding(engine: Engine) -> None:
    plain, *found = (
        engine.generate(PROMPT, GenerationOptions(max_tokens=16, temperature=1.0, seed=0, depth=depth), raw=True).tokens
        for depth in (0, 1, 4)
    )
    assert found == [plain] * 2


# -- the head's own rows


@few
def test_rows_fed_in_pieces_are_the_same(engine: Engine) -> None:
    assert engine.mtp
    hidden = mx.random.normal((1, 20, engine.target.text_model.args.hidden_size), key=mx.random.key(1))
    tokens = mx.array([PROMPT])
    whole = engine.mtp(hidden, tokens, engine.mtp.make_cache([]))
    cache = engine.mtp.make_cache([])
    edges = (0, 1, 2, 7, 9, 17, 20)
    pieces = [engine.mtp(hidden[:, a:b], tokens[:, a:b], cache) for a, b in pairwise(edges)]
    assert difference(mx.concatenate(pieces, axis=1), whole) < 1e-5


@pytest.mark.parametrize("kind", REFERENCES)
def test_trunk_and_head_equal_their_reference(layer_checkpoint: Checkpoints, kind: str) -> None:
    engine = load(layer_checkpoint(kind))
    assert engine.mtp
    tokens, ahead = mx.array([PROMPT]), mx.array([[5, 11]])
    expected = REFERENCES[kind](layer_checkpoint(kind), tokens, ahead)
    logits, hidden = engine.target.forward(tokens, engine.target.make_cache())
    assert difference(hidden, expected["trunk_hidden"]) < TRUNK_TOLERANCE
    assert difference(logits, expected["trunk_logits"]) < TRUNK_TOLERANCE
    following = {
        f"next_tokens_d{d}": rows for d, rows in zip(DEPTHS, (tokens[:, 1:], *mx.split(ahead, 2, 1)), strict=True)
    }
    for depth, out in depths(engine.mtp, expected["trunk_hidden"], following):
        assert difference(out, expected[f"head_hidden_d{depth}"]) < HEAD_TOLERANCE, depth
        assert difference(engine.mtp.logits(out), expected[f"head_logits_d{depth}"]) < HEAD_TOLERANCE, depth


# -- however it is stored


def test_the_head_is_the_same_converted_attached_and_read_back(
    kind: str, layer_checkpoint: Checkpoints, tmp_path: Path
) -> None:
    raw = layer_checkpoint(kind)
    head = head_of(raw)
    converted = convert(raw, tmp_path / "mlx").folder
    stripped = convert(layer_checkpoint(kind, head=False), tmp_path / "stripped").folder
    assert not inspect(stripped).speculates
    attach(stripped, str(raw))
    for folder in (converted, stripped):
        assert_equal(head_of(folder), head)
        report = inspect(folder)
        assert report.speculates, report.because
        assert report.head is not None
        assert (report.head.family, report.head.layers, report.head.norms) == (family_of(kind).name, 1, "plain")


@few
def test_a_quantised_conversion_decodes_as_mlx_lm(kind: str, layer_checkpoint: Checkpoints, tmp_path: Path) -> None:
    packed = convert(
        layer_checkpoint(kind), tmp_path / "packed", quantization=Quantization(bits=4, group_size=32), head_bits=8
    ).folder
    engine = load(packed)
    assert any(name.endswith(".scales") for name in head_of(packed))
    assert_plain(engine, PROMPT, plain_run(engine, PROMPT, 12), 3)


# -- refusals


@few
def test_a_head_that_does_not_fit_is_refused(kind: str, tmp_path: Path) -> None:
    """A tensor is missing, has another shape, or belongs to a second layer: one line that names it."""
    folder = tiny.layer_checkpoint(tmp_path / "model", kind)
    settings = json.loads((folder / "config.json").read_text())
    stored = tiny.load_weights(folder)
    names = sorted(tiny.LAYER_KINDS[kind].head(settings))
    for part in ("norm.weight", "proj.weight", "down_proj.weight"):
        name = next(name for name in names if name.endswith(part))
        tiny.save_weights(folder, {n: w for n, w in stored.items() if n != name}, made_by="pt")
        with pytest.raises(HeadError, match=r"missing|have no") as missing:
            load(folder)
        tiny.save_weights(folder, stored | {name: mx.zeros((3,) * stored[name].ndim)}, made_by="pt")
        with pytest.raises(HeadError, match=r"\(3,") as wrong:
            load(folder)
        assert all("\n" not in str(error.value) for error in (missing, wrong)), name
    numbered = {name: match for name in names if (match := re.search(r"(?<=\.)\d+(?=\.)", name))}
    assert numbered, "the layer has no number"
    second = {n[: at.start()] + str(int(at[0]) + 1) + n[at.end() :]: stored[n] for n, at in numbered.items()}
    tiny.save_weights(folder, stored | second, made_by="pt")
    with pytest.raises(HeadError, match="has 2 MTP layers"):
        load(folder)
