"""A head whose trunk was tuned away is said once, by its first drafts; a head that fits is not."""

from collections.abc import Iterable
from itertools import product

import mlx.core as mx
import pytest
from mlx.utils import tree_map_with_path

from mlxmtp import Engine, GenerationOptions, load
from mlxmtp.decoding.stats import Round
from mlxmtp.engine.head_fit import COMPARED_TOKENS, FALSE_ALARM, MAX_COMPARISONS, HeadFit, at_most
from mlxmtp.heads.check import MIN_ACCEPTANCE
from mlxmtp.worker.messages import Generate, Warned
from tests.grids import cases
from tests.worker.driving import SMALL_MODEL, serve

TRAINED = SMALL_MODEL.parent

SUSPICIOUS = [Round((1,), drafted=3, accepted=0, evaluations=1)] * 6
"""What `--depth auto` drafts before it decodes plainly."""


def spoilt(engine: Engine) -> Engine:
    """The head's matrices are random, as `scripts/spoil_head.py random` makes them."""
    mx.random.seed(0)

    def random(_: str, weight: mx.array) -> mx.array:
        if weight.ndim < 2 or not mx.issubdtype(weight.dtype, mx.floating):
            return weight
        return (mx.random.normal(weight.shape) * mx.std(weight)).astype(weight.dtype)

    assert engine.mtp is not None
    engine.mtp.update(tree_map_with_path(random, engine.mtp.parameters()))  # type: ignore[attr-defined]
    return engine


def watched(engine: Engine, rounds: Iterable[Round], tokens: list[int]) -> HeadFit:
    fit = HeadFit(engine.target, engine.mtp)
    for one in rounds:
        fit.observe(one)
    fit.end_turn(tokens)
    return fit


@pytest.fixture(scope="module")
def sound() -> Engine:
    return load(TRAINED / "glm4_moe")


@pytest.fixture(scope="module")
def text(sound: Engine) -> list[int]:
    found: list[int] = sound.tokenizer.encode((TRAINED / "held_out.txt").read_text()[:800])
    return found


def test_a_head_whose_trunk_was_tuned_away_is_said_once(text: list[int]) -> None:
    """By the worker, and so by chat and server; and by who asks the engine."""
    engine = spoilt(load(TRAINED / "glm4_moe"))
    messages = [{"role": "user", "content": engine.tokenizer.decode(text[:100])}]
    turns = [Generate(id, messages, GenerationOptions(max_tokens=48, depth=1)) for id in (1, 2)]
    events = serve(*turns, engine=engine)
    (warned,) = (event.message for event in events if isinstance(event, Warned))
    assert warned.startswith("the head's first drafts are the model's own tokens at ")
    assert "those of a head that fits at 20% or more: it does not belong to this model" in warned
    assert engine.fit.warning() is None
    fit = watched(engine, SUSPICIOUS, text)
    assert fit.warning()
    assert fit.warning() is None, "once"


def test_suspicion_alone_warns_of_nothing(sound: Engine, text: list[int]) -> None:
    """Drafts of a good head are rejected where a grammar, a penalty or a narrowed vocabulary forbids them."""
    assert watched(sound, SUSPICIOUS, text).warning() is None
    spoiled = spoilt(load(TRAINED / "glm4_moe"))
    narrowed = [Round((1,), drafted=1, accepted=0, evaluations=1, narrowed=True)] * 9
    looked_up = [Round((1,), drafted=1, accepted=0, evaluations=1, from_lookup=True)] * 9
    accepted = [Round((1,), drafted=1, accepted=1, evaluations=1)] * 2
    for case, rounds, tokens in (
        ("too few drafts", SUSPICIOUS[:4], text),
        ("narrowed", narrowed, text),
        ("looked up", looked_up, text),
        ("a quarter is accepted", SUSPICIOUS + accepted, text),
        ("no text", SUSPICIOUS, []),
        ("too little text", SUSPICIOUS, text[:40]),
    ):
        assert watched(spoiled, rounds, tokens).warning() is None, case
    assert HeadFit(sound.target, None).warning() is None


def test_texts_that_are_too_short_add_up(text: list[int]) -> None:
    engine = spoilt(load(TRAINED / "glm4_moe"))
    fit = watched(engine, SUSPICIOUS, text[:40])
    said = []
    for start in range(40, 400, 40):
        said.append(fit.warning() is not None)
        fit.end_turn(text[start : start + 40])
    assert said.index(True) in (1, 2, 3), said
    assert sum(said) == 1


def test_the_lower_tail_of_the_binomial() -> None:
    for trials, probability in ((1, 0.2), (7, 0.2), (6, 0.6)):
        for most in range(trials + 1):
            outcomes = (sum(one) for one in product((0, 1), repeat=trials))
            expected = sum(probability**k * (1 - probability) ** (trials - k) for k in outcomes if k <= most)
            assert at_most(most, trials, probability) == pytest.approx(expected)
    most = (COMPARED_TOKENS - 2) * MAX_COMPARISONS
    assert at_most(most, most, MIN_ACCEPTANCE) == pytest.approx(1), "no overflow"
    assert at_most(int(0.1 * most), most, MIN_ACCEPTANCE) < FALSE_ALARM < at_most(most // 6, most, MIN_ACCEPTANCE)


@pytest.mark.parametrize("kind", cases(("gemma4", "glm4_moe", "deepseek_v3", "deepseek_v32"), default=("gemma4",)))
def test_no_false_alarm_for_trained_heads(kind: str) -> None:
    engine = load(TRAINED / kind)
    text = engine.tokenizer.encode((TRAINED / "held_out.txt").read_text())
    for start in range(0, 1024, COMPARED_TOKENS):
        assert watched(engine, SUSPICIOUS, text[start : start + COMPARED_TOKENS]).warning() is None, start
