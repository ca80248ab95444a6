"""The dear part of the probe: greedy texts with and without MTP, held against what the cheap part has found."""

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest

from mlxmtp import Engine, load
from mlxmtp.engine.examine import PARTED, Examination, examine
from mlxmtp.exactness.greedy import NEAR_TIE_FACTOR, GreedyRun, greedy_run
from mlxmtp.exactness.probe import ProbePlan
from tests.exactness.conftest import text
from tests.exactness.stand_in import backend, own
from tests.grids import cases
from tests.running import generated, reference

SHORT = ProbePlan((32,))
Engines = Callable[[str], Engine]


@pytest.fixture
def small(raw_checkpoint: Callable[..., Path]) -> Path:
    return raw_checkpoint("qwen3_5", dtype="float32")


@pytest.mark.parametrize("kind", cases(["dense", "4-bit", "latent", "window"], ("4-bit", "window")))
def test_texts_are_the_same_on_this_backend(engine: Engines, kind: str) -> None:
    model, told = engine(kind), []
    assert model.mtp
    run = greedy_run(model.target, model.mtp, text(model), 3, 16, lambda *one: told.append(one))
    assert run == GreedyRun(16)
    assert run.same
    assert told == [(n, 16) for n in range(1, 17)]


def test_texts_that_part_are_followed_to_where_they_do(engine: Engines) -> None:
    model = engine("half")
    assert model.mtp
    prompt = text(model, 12)
    with backend(own):
        plain, other = (generated(model, prompt, 12, depth) for depth in (0, 3))
        run = greedy_run(model.target, model.mtp, prompt, 3, 12)
    assert plain != other
    assert run.tokens == next(i for i, (a, b) in enumerate(zip(plain, other, strict=True)) if a != b)
    assert run.gap is not None
    assert 0 <= run.gap < 0.5, "random weights leave no large gaps"


def test_a_near_tie_is_one_that_rounding_explains() -> None:
    run = GreedyRun(5, gap=0.25)
    assert run.near_tie(0.25 / NEAR_TIE_FACTOR)
    assert not run.near_tie(0.24 / NEAR_TIE_FACTOR)
    assert not run.near_tie(0.0)
    assert not GreedyRun(5).near_tie(1.0), "nothing differs"


def found(model: Engine) -> dict[str, Examination]:
    return {one.identity: one for one in examine(model.facts, model.probe_text, SHORT)}


def test_what_is_identical_as_it_is_needs_no_more(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlxmtp.engine.examine.TOKENS", 16)
    every = found(load(small))
    assert list(every) == ["fast"]
    assert every["fast"].guarantee.promise == "identical"
    assert every["fast"].run
    assert every["fast"].run.same


@pytest.mark.exhaustive
def test_every_identity_is_examined_where_it_is_not_and_kept() -> None:
    with backend():
        every = found(load())
        assert load(identity="strict").guarantee == every["strict"].guarantee
    promises = {identity: one.guarantee.promise for identity, one in every.items()}
    assert promises == {"fast": "distribution", "strict": "identical-one-row", "canonical": "identical-canonical"}
    assert not any(one.broken for one in every.values())
    assert all(every[identity].run.same for identity in ("strict", "canonical"))  # type: ignore[union-attr]


def test_a_gap_that_rounding_does_not_explain_is_a_fault(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured by what the arithmetic of the text moves, not by what another one does."""
    model = load(small)
    with backend(lambda rows: 1 if rows < 2 else 3):
        differences: dict[float, str] = {}
        for gap in (1e-7, 4.0):
            monkeypatch.setattr("mlxmtp.engine.examine.greedy_run", lambda *_, gap=gap: GreedyRun(3, gap=gap))
            differences[gap] = next(iter(examine(model.facts, model.probe_text, SHORT))).broken
    assert differences == {1e-7: "", 4.0: PARTED}


def test_a_promise_that_the_text_breaks_is_withdrawn(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by a fault in the engine: all bits agree, and yet the texts part."""
    model = load(small)
    assert model.mtp
    expected = reference(model, [5, 6, 7], 8)
    monkeypatch.setattr("mlxmtp.engine.examine.greedy_run", lambda *_: GreedyRun(3, gap=4.0))
    every = found(model)
    assert list(every) == ["fast", "strict", "canonical"]
    for one in every.values():
        assert one.broken
        assert (one.guarantee.promise, one.guarantee.min_tokens) == ("distribution", 1)
        assert "after 3 tokens, though all bits agreed" in one.guarantee.because
    assert (load(small).guarantee.promise, load(small, identity="strict").head) == ("distribution", None), (
        "and remembered"
    )
    assert reference(model, [5, 6, 7], 8) == expected


def test_without_a_head_there_is_no_text_to_compare(small: Path) -> None:
    every = found(load(small, mtp=False))
    assert every["fast"].run is None
    assert every["fast"].guarantee.identical


def test_a_head_can_be_as_wrong_as_it_likes(engine: Engines) -> None:
    model = engine("dense")
    assert model.mtp
    logits = model.mtp.logits
    model.mtp.logits = lambda states: mx.roll(logits(states), 3, axis=-1)  # type: ignore[method-assign]
    assert greedy_run(model.target, model.mtp, text(model), 3, 16).same
