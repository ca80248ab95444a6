"""Log-probabilities: the target's own, whatever is sampled and drafted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models.cache import make_prompt_cache

from mlxmtp import Engine, GenerationOptions, OptionError, TokenLogprob, load
from mlxmtp.decoding.depth import FixedDepth
from mlxmtp.decoding.draft import MTPChain
from mlxmtp.decoding.loop import generate, never_stop
from mlxmtp.decoding.sampler import Sampler, TopLogprobs
from mlxmtp.decoding.sampling import Sampling
from tests.engine.kinds import TRAINED
from tests.grids import cases
from tests.running import prefilled
from tests.scripted import counted_evaluations

PROMPT, COUNT = "def add(a, b):\n", 20


@pytest.fixture(scope="module")
def engine() -> Engine:
    """A small model whose head is right at every depth."""
    return load(TRAINED / "glm4_moe")


def told(engine: Engine, sampling: GenerationOptions, depth: int, count: int) -> list[TokenLogprob]:
    records = []
    for chunk in engine.stream(PROMPT, replace(sampling, max_tokens=COUNT, depth=depth, logprobs=count), raw=True):
        assert [one.token for one in chunk.logprobs] == list(chunk.tokens)
        records += chunk.logprobs
    assert not depth or chunk.stats.drafted > 0
    return records


def laws(engine: Engine, generated: list[int]) -> list[list[float]]:
    """log_softmax of mlx-lm's model called directly: the prompt, then a token at a time."""
    model, prompt = engine.target.model, engine.tokenizer.encode(PROMPT)
    cache = make_prompt_cache(model)
    model(mx.array([prompt[:-1]]), cache=cache)
    found = []
    for token in [prompt[-1], *generated[:-1]]:
        logits = model(mx.array([[token]]), cache=cache)[0, -1].astype(mx.float32)
        found.append((logits - mx.logsumexp(logits)).tolist())
    return found  # type: ignore[return-value]


@pytest.mark.parametrize("depth", cases([0, 1, 3], default=(0, 3)))
@pytest.mark.parametrize(
    "sampling",
    [
        GenerationOptions(),
        GenerationOptions(temperature=1.0, seed=1),
        GenerationOptions(
            temperature=0.7,
            top_k=20,
            top_p=0.9,
            seed=2,
            frequency_penalty=0.8,
            repetition_penalty=1.3,
            logit_bias={5: 3.0},
        ),
    ],
    ids=["greedy", "sampled", "filtered and penalised"],
)
def test_they_are_log_softmax_of_a_plain_pass(engine: Engine, sampling: GenerationOptions, depth: int) -> None:
    records = told(engine, sampling, depth, 5)
    assert len(records) > 8
    for one, law in zip(records, laws(engine, [one.token for one in records]), strict=True):
        assert one.logprob == law[one.token]
        best = sorted(range(len(law)), key=lambda token: (-law[token], token))[:5]
        assert one.top == tuple((token, law[token]) for token in best)


@pytest.mark.parametrize("verify", ["token", "block"])
def test_of_rejection_sampling(engine: Engine, verify: Any) -> None:
    options = GenerationOptions(temperature=1.5, seed=4, max_tokens=COUNT, depth=3, verify=verify, logprobs=0)
    chunks = list(engine.stream(PROMPT, options, raw=True))
    records = [one for chunk in chunks for one in chunk.logprobs]
    assert 0 < chunks[-1].stats.accepted < chunks[-1].stats.drafted, "tokens of both kinds"
    for one, law in zip(records, laws(engine, [one.token for one in records]), strict=True):
        assert (one.logprob, one.top) == (law[one.token], ())


def test_they_change_no_token_and_are_not_given_unasked(engine: Engine) -> None:
    for sampling in (GenerationOptions(), GenerationOptions(temperature=1.0, seed=1)):
        chunks = list(engine.stream(PROMPT, replace(sampling, max_tokens=COUNT), raw=True))
        assert [token for chunk in chunks for token in chunk.tokens] == [
            one.token for one in told(engine, sampling, 3, 20)
        ]
        assert all(chunk.logprobs == () for chunk in chunks)


def test_of_equals_the_lower_id_comes_first() -> None:
    logits = mx.array([[[0.0, 2.0, 1.0, 2.0, 1.0, 2.0] * 50]], mx.bfloat16)
    (one,) = TopLogprobs(logits, mx.array([[2]]), 20).read([2])
    assert [token for token, _ in one.top] == [6 * i + j for i in range(7) for j in (1, 3, 5)][:20]
    assert len({value for _, value in one.top}) == 1
    assert one.logprob == pytest.approx(one.top[0][1] - 1)


@pytest.mark.parametrize("depth", [0, 3])
def test_they_come_with_the_evaluation_of_their_round(engine: Engine, depth: int) -> None:
    """What is read afterwards has been evaluated: only `eval` and the first reading wait."""
    sequence, law = prefilled(engine, [40, 7, 99], depth), Sampler(Sampling())
    if depth:
        drafter = MTPChain(engine.mtp)  # type: ignore[arg-type]
        found = generate(engine.target, drafter, sequence, law, FixedDepth(depth), never_stop, 100, 2)
    else:
        found = generate(engine.target, None, sequence, law, FixedDepth(0), never_stop, 100, 2)
    for _ in range(3):
        with counted_evaluations() as calls:
            one = next(found)
        assert one.evaluations == 1
        assert calls == ["tolist"] * 4, "the outcome, then three columns"


def test_a_number_out_of_range_is_refused_at_once(engine: Engine) -> None:
    values: list[Any] = [-1, 21, 2.5, "3"]
    for wrong in values:
        with pytest.raises(OptionError, match=rf"logprobs is .*{wrong}.*; expected a whole number from 0 to 20"):
            engine.stream(PROMPT, GenerationOptions(logprobs=wrong))
