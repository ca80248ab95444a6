"""The probe finds every dependence on the number of rows, and shows nothing that is not so."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import pytest

from mlxmtp import Engine, load
from mlxmtp.identity.probe import QUICK, ROWS, Finding, Rung, probe
from tests.identity.conftest import KINDS, text
from tests.identity.stand_in import backend, narrow, only

Engines = Callable[[str], Engine]


@pytest.mark.parametrize("kind", KINDS)
def test_every_model_is_identical_as_it_is_on_this_backend(engine: Engines, kind: str) -> None:
    model = engine(kind)
    told: list[tuple[Rung, Finding]] = []
    verdict = probe(model.target, text(model), tell=lambda *one: told.append(one))
    assert (verdict.promise, verdict.rows, verdict.width, verdict.because) == ("identical", ROWS, 1, "")
    assert verdict.context == max(finding.context for _, finding in told) >= 1100, "long contexts too"
    assert all(finding.equal and not finding.difference for _, finding in told)


def test_the_demo() -> None:
    model = load()
    assert model.verdict.promise == "identical"
    assert model.token_identical


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_are_added_up_in_another_order_are_found(engine: Engines, kind: str) -> None:
    model = engine(kind)
    with backend():
        verdict = probe(model.target, text(model))
    assert verdict.promise == "distribution"
    assert verdict.because.startswith("logits differ by up to ")
    assert verdict.complete


@pytest.mark.parametrize("width", range(2, ROWS + 1))
def test_a_single_width_is_found(engine: Engines, width: int) -> None:
    model = engine("dense")
    with backend(only(width)):
        assert probe(model.target, text(model)).promise == "distribution"


@pytest.mark.parametrize("threshold", [1024, 4096])
def test_attention_that_changes_at_a_long_context_is_found(engine: Engines, threshold: int) -> None:
    """As Metal's does, which splits its keys from there on; the tiny models were made for fewer than 4096."""
    model = engine("dense")
    model.target.text_config["max_position_embeddings"] = 1 << 15
    found: list[Finding] = []
    with backend(narrow, attends=lambda rows, keys: 3 if rows > 1 and keys >= threshold else 1):
        verdict = probe(model.target, text(model), tell=lambda _, finding: found.append(finding))
    assert verdict.promise == "distribution"
    assert [finding.equal for finding in found] == [context < threshold for context, _ in QUICK][: len(found)]


def test_logits_that_are_not_finite_show_nothing(engine: Engines) -> None:
    model = engine("dense")
    weight = model.target.model.layers[0].mlp.down_proj.weight
    model.target.model.layers[0].mlp.down_proj.weight = mx.full(weight.shape, float("nan"))
    verdict = probe(model.target, text(model))
    assert (verdict.promise, verdict.complete) == ("distribution", False)
    assert "not finite" in verdict.because


@pytest.mark.parametrize("error", [RuntimeError("[malloc] Unable to allocate"), MemoryError(), KeyError("x")], ids=repr)
@pytest.mark.parametrize("identity", ["fast", "strict", "canonical"])
def test_what_breaks_shows_nothing(engine: Engines, identity: Any, error: Exception) -> None:
    model = engine("dense")
    opened = model.target.open

    def breaks(tokens: mx.array, cache: Any) -> Any:
        if tokens.shape[1] > 2:
            raise error
        return opened(tokens, cache)

    model.target.open = breaks
    verdict = probe(model.target, text(model), identity)
    assert (verdict.promise, verdict.complete, verdict.width) == ("distribution", False, 1)
    assert type(error).__name__ in verdict.because
    assert model.target.width == 1, "it is left as it was"


def test_a_single_token_is_text_enough(engine: Engines) -> None:
    model = engine("dense")
    assert probe(model.target, [5]).promise == "identical"
