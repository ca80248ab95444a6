"""Penalties and biases with speculation on: tokens against mlx-lm's, laws against formulas written out by hand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.generate import generate_step
from mlx_lm.sample_utils import make_logits_processors

from mlxmtp import Engine, GenerationOptions, OptionError, load
from mlxmtp.decoding import logits_processors as processors_module
from mlxmtp.decoding.depth import FixedDepth
from mlxmtp.decoding.logits_processors import LogitBias, Penalties, logits_processors
from mlxmtp.decoding.loop import TIMED_FIRST, generate, never_stop
from mlxmtp.decoding.sampler import Sampler, VerifyMode
from mlxmtp.decoding.sampling import Sampling
from mlxmtp.decoding.sequence import Sequence
from mlxmtp.decoding.stats import Round
from tests.decoding.law_tables import FALSE_ALARM, chance_of_worse
from tests.grids import cases
from tests.running import prefilled, rounds
from tests.scripted import Depths, TableDrafter, TableTarget, counted_evaluations, random_table

# -- greedy tokens are mlx-lm's -------------------------------------------------------------------------------

TRAINED = Path(__file__).parent.parent / "trained" / "glm4_moe"
TEXT = "Tom has 3 apples and buys 5 more. How many apples does he have?\n"
"""Its plain answer falls into a loop, so that each penalty changes it."""
COUNT = 32
CASES: dict[str, dict[str, Any]] = {
    "frequency": {"frequency_penalty": 0.6},
    "presence": {"presence_penalty": 1.9},
    "negative": {"frequency_penalty": -0.7, "presence_penalty": -1.5},
    "repetition": {"repetition_penalty": 1.2},
    "bias": {"logit_bias": {73: -100.0, 69: 3.5, 30: 0.25, 80: 6.0}},
    "all": {"frequency_penalty": 0.3, "presence_penalty": 0.5, "repetition_penalty": 1.1, "logit_bias": {80: 4.0}},
}


@pytest.fixture(scope="module")
def trained() -> Engine:
    return load(TRAINED)


@pytest.fixture(scope="module")
def unpenalised(trained: Engine) -> list[int]:
    return mlx_lms(trained, trained.tokenizer.encode(TEXT), {})


def mlx_lms(engine: Engine, prompt: list[int], case: dict[str, Any]) -> list[int]:
    """mlx-lm's own bias and repetition; frequency and presence by OpenAI's formula over what follows the prompt."""
    f, p = case.get("frequency_penalty", 0.0), case.get("presence_penalty", 0.0)

    def openai(tokens: mx.array, logits: mx.array) -> mx.array:
        counts = np.bincount(np.array(tokens)[len(prompt) :], minlength=logits.shape[-1])
        return logits - mx.array((counts * f + (counts > 0) * p).astype(np.float32)).astype(logits.dtype)

    theirs = make_logits_processors(case.get("logit_bias"), case.get("repetition_penalty"), 10**6)
    steps = generate_step(mx.array(prompt), engine.target.model, max_tokens=COUNT, logits_processors=[*theirs, openai])
    return [token for token, _ in steps]


def greedy(engine: Engine, prompt: list[int], depth: int, case: dict[str, Any]) -> list[Round]:
    return list(rounds(engine, prefilled(engine, prompt, depth), COUNT, depth, Sampling(**case)))


def tokens_of(found: list[Round]) -> list[int]:
    return [token for one in found for token in one.tokens]


@pytest.mark.parametrize("name", cases(CASES, default=[*CASES][::3]))
def test_greedy_tokens_are_mlx_lms_at_any_depth(trained: Engine, unpenalised: list[int], name: str) -> None:
    case = CASES[name]
    prompt = trained.tokenizer.encode(TEXT)
    theirs = mlx_lms(trained, prompt, case)
    assert theirs != unpenalised, "the case changes nothing: the test shows nothing"
    for depth in (0, 3):
        found = greedy(trained, prompt, depth, case)
        assert tokens_of(found) == theirs, f"depth {depth}"
        assert not depth or sum(one.accepted for one in found) > COUNT / 6


def test_counts_start_anew_with_every_turn(trained: Engine) -> None:
    """Generated before, in the prompt now: frequency does not see it, repetition does."""
    prompt = trained.tokenizer.encode(TEXT)
    longer = prompt + tokens_of(greedy(trained, prompt, 3, {}))
    for case in (CASES["frequency"], CASES["repetition"]):
        assert tokens_of(greedy(trained, longer, 3, case)) == mlx_lms(trained, longer, case)


def test_a_bias_outside_the_vocabulary_is_refused_at_once(trained: Engine) -> None:
    with pytest.raises(OptionError, match="logit_bias names token 288; expected tokens from 0 to 287"):
        trained.stream(TEXT, GenerationOptions(logit_bias={5: 1.0, 288: 1.0}))


# -- rows, by hand --------------------------------------------------------------------------------------------

V = 5
TARGET, DRAFT = random_table(V, seed=3, spread=1.5), random_table(V, seed=4, spread=1.5)
PROMPT = [1, 2, 2]
PENALISED = {
    "frequency_penalty": 0.9,
    "presence_penalty": 0.7,
    "repetition_penalty": 1.7,
    "logit_bias": {0: 0.8, 3: -1.1},
}
TEMPERATURE = 0.8


def by_hand(row: np.ndarray, prompt: list[int], generated: list[int], sampling: Sampling) -> np.ndarray:
    """The formulas, token by token, in float64."""
    found = np.array(row, np.float64)
    for token in range(len(found)):
        found[token] += dict(sampling.logit_bias).get(token, 0.0)
        if token in prompt or token in generated:
            found[token] *= sampling.repetition_penalty ** (-1 if found[token] > 0 else 1)
        found[token] -= generated.count(token) * sampling.frequency_penalty
        found[token] -= (token in generated) * sampling.presence_penalty
    return found


@pytest.mark.parametrize("stands", [[], [4], [4, 0, 4, 3]], ids=str)
def test_each_row_has_the_prefix_of_plain_decoding(stands: list[int]) -> None:
    sampling, since = Sampling(**PENALISED), [3, 3, 1, 4]
    processors = logits_processors(sampling)
    assert [type(one) for one in processors] == [LogitBias, Penalties], "the bias comes before the penalties"

    def processed(logits: mx.array, tokens: list[int]) -> mx.array:
        for processor in processors:
            logits = processor.process(logits, mx.array([tokens], mx.uint32))
        return logits

    for processor in processors:
        processor.begin(PROMPT)
    processed(TARGET[None, :1], [])
    for token in stands:
        for processor in processors:
            processor.advance([token])
    for count in range(1, 6):
        logits = TARGET[10 : 10 + count][None]
        found = np.array(processed(logits, since))[0]
        for i, row in enumerate(found):
            before = stands + since[: len(since) - (count - 1 - i)]
            assert np.allclose(row, by_hand(np.array(logits[0, i]), PROMPT, before, sampling), atol=1e-6)


# -- the law of sampled tokens --------------------------------------------------------------------------------

FIRST, TURNS = 3, 1500  # tokens that the joint law is over; seeds


def turn(law: Sampler, depth: int | None, count: int, drafted_from: mx.array = DRAFT) -> list[Round]:
    """Rounds of the real loop over tables; depth None decodes plainly."""
    target = TableTarget(TARGET)
    sequence = Sequence(target, None)  # type: ignore[arg-type]
    sequence.prefill(PROMPT)
    if depth is None:
        return list(generate(target, None, sequence, law, FixedDepth(0), never_stop, count))  # type: ignore[arg-type]
    return list(generate(target, TableDrafter(drafted_from), sequence, law, Depths(depth), never_stop, count))  # type: ignore[arg-type]


def enumerated_law() -> np.ndarray:
    """The probabilities [V] * FIRST of a turn's first tokens, in float64."""
    sampling, table = Sampling(TEMPERATURE, **PENALISED), np.array(TARGET)
    law = np.zeros((V,) * FIRST)
    for tokens in itertools.product(range(V), repeat=FIRST):
        chance = 1.0
        for i, token in enumerate(tokens):
            before = [*PROMPT, *tokens[:i]]
            row = by_hand(table[before[-2] * V + before[-1]], PROMPT, list(tokens[:i]), sampling) / TEMPERATURE
            chance *= math.exp(row[token]) / np.exp(row).sum()
        law[tokens] = chance
    return law


def chance(verify: VerifyMode, depth: int | None) -> float:
    """The p-value of what came out."""
    counts, accepted = np.zeros((V,) * FIRST, int), 0
    for seed in range(TURNS):
        found = turn(Sampler(Sampling(TEMPERATURE, seed=seed, **PENALISED), verify), depth, FIRST)
        counts[tuple(tokens_of(found))] += 1
        accepted += sum(one.accepted for one in found)
    assert depth is None or accepted > TURNS / 5
    return chance_of_worse(counts.reshape(-1), enumerated_law().reshape(-1))


@pytest.mark.exhaustive  # by default: seeded tokens at any depth, below, and the law of test_verify_law.py
@pytest.mark.parametrize(("verify", "depth"), [("token", None), ("token", 2), ("block", 2), ("seeded", 2)])
def test_sampled_tokens_follow_the_penalised_law(verify: VerifyMode, depth: int | None) -> None:
    assert chance(verify, depth) > FALSE_ALARM


def rows_without_their_drafts(since: mx.array, rows: int, vocabulary: int) -> mx.array:
    return mx.zeros((since.shape[0], rows, vocabulary), mx.int32)


def rows_with_their_own_draft(since: mx.array, rows: int, vocabulary: int) -> mx.array:
    honest = SEEN_BY(mx.concatenate([since, since[:, -1:]], axis=1), rows + 1, vocabulary)
    return honest[:, -rows:]


SEEN_BY = processors_module._counts_before_rows


@pytest.mark.exhaustive
@pytest.mark.parametrize("broken", [rows_without_their_drafts, rows_with_their_own_draft])
def test_rows_with_another_prefix_are_rejected(
    monkeypatch: pytest.MonkeyPatch, broken: Callable[..., mx.array]
) -> None:
    monkeypatch.setattr(processors_module, "_counts_before_rows", broken)
    assert chance("token", 2) < FALSE_ALARM


@pytest.mark.parametrize("filters", [{}, {"top_p": 0.8}, {"top_k": 3, "min_p": 0.1}], ids=str)
def test_a_seed_gives_the_same_tokens_at_any_depth(filters: dict[str, Any]) -> None:
    for seed in range(2):
        law = Sampler(Sampling(TEMPERATURE, seed=seed, **PENALISED, **filters))
        plain = tokens_of(turn(law, None, 30))
        assert plain != tokens_of(turn(Sampler(Sampling(TEMPERATURE, seed=seed, **filters)), None, 30))
        for depth in (0, 1, 2, 5):
            assert tokens_of(turn(law, depth, 30)) == plain, (seed, depth)


@pytest.mark.parametrize("verify", ["token", "block", "seeded"])
@pytest.mark.parametrize("temperature", [0.0, TEMPERATURE])
def test_drafts_are_penalised_as_the_target_is(verify: VerifyMode, temperature: float) -> None:
    """A head that knows the target stands always, although every token that it drafts changes the next law."""
    found = turn(Sampler(Sampling(temperature, seed=1, **PENALISED), verify), 3, 40, drafted_from=TARGET)
    assert sum(one.accepted for one in found) == sum(one.drafted for one in found) == 30


# -- cost, and options ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sampling", [Sampling(**PENALISED), Sampling(1.0, seed=1, **PENALISED)], ids=["greedy", "seed"]
)
@pytest.mark.parametrize("depth", [0, 3])
def test_a_round_still_waits_for_the_device_once(trained: Engine, sampling: Sampling, depth: int) -> None:
    found = rounds(trained, prefilled(trained, PROMPT, depth), 1000, depth, sampling)
    for number in range(TIMED_FIRST + 2):
        with counted_evaluations() as calls:
            one = next(found)
        assert len(calls) == one.evaluations == (3 if depth and number == TIMED_FIRST else 1), calls
    found.close()  # type: ignore[attr-defined]


def test_a_turn_without_penalties_has_no_processors() -> None:
    off = Sampling(frequency_penalty=0.0, presence_penalty=0, repetition_penalty=1, logit_bias={})
    assert off == Sampling()
    assert logits_processors(off) == []
