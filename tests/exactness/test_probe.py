"""The probe finds every dependence on the number of rows, and shows nothing that is not so."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import mlx.core as mx
import pytest

from mlxmtp import Engine, load
from mlxmtp.exactness.compare import MEMORY_FRACTION, PREFIX_TOKENS, Finding
from mlxmtp.exactness.guarantee import IDENTITIES, Identity
from mlxmtp.exactness.probe import FULL, GPU_TOKENS, QUICK, ProbePlan, probe
from mlxmtp.exactness.strategy import Strategy
from mlxmtp.limits import MAX_DEPTH
from mlxmtp.targets import Target, is_trimmable, leaf_caches, snapshot
from tests.exactness.conftest import KINDS, text
from tests.exactness.stand_in import backend, narrow, only
from tests.grids import cases

Engines = Callable[[str], Engine]
SHORT = ProbePlan((PREFIX_TOKENS,))


@pytest.mark.parametrize("kind", cases(KINDS, ("next", "sparse", "window")))
def test_every_model_is_identical_as_it_is_on_this_backend(engine: Engines, kind: str) -> None:
    model = engine(kind)
    told: list[tuple[Strategy, Finding]] = []
    guarantee = probe(model.target, text(model), on_finding=lambda *one: told.append(one))
    assert (guarantee.promise, guarantee.num_tokens, guarantee.min_tokens, guarantee.because) == (
        "identical",
        MAX_DEPTH + 1,
        1,
        "",
    )
    assert guarantee.context == max(finding.context for _, finding in told) >= 1100, "long contexts too"
    assert all(finding.equal and not finding.difference for _, finding in told)


@pytest.mark.exhaustive
def test_the_demo() -> None:
    model = load()
    assert model.guarantee.promise == "identical"
    assert model.token_identical


@pytest.mark.parametrize("kind", cases(KINDS, ("half", "4-bit", "experts", "latent", "window")))
def test_rows_that_are_added_up_in_another_order_are_found(engine: Engines, kind: str) -> None:
    model = engine(kind)
    with backend():
        guarantee = probe(model.target, text(model))
    assert guarantee.promise == "distribution"
    assert guarantee.because.startswith("logits differ by up to ")
    assert guarantee.complete


def test_a_single_row_is_found(engine: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    """One logit of one row of passes over three rows; row 3 is the one after such a pass."""
    model = engine("dense")
    opened, before = model.target.open, [0]
    assert probe(model.target, text(model), plan=SHORT).promise == "identical"
    for row in range(4):

        def spoilt(tokens: mx.array, cache: Any, row: int = row) -> Any:
            found, rows = opened(tokens, cache), tokens.shape[1]
            at = row if rows == 3 else 0 if row == 3 and before[0] == 3 else rows
            found.logits = mx.where((mx.arange(rows) == at)[None, :, None], found.logits + 2**-10, found.logits)
            before[0] = rows
            return found

        monkeypatch.setattr(model.target, "open", spoilt)
        assert probe(model.target, text(model), plan=SHORT).num_tokens == 2, row


def test_a_single_width_is_found(engine: Engines) -> None:
    model = engine("dense")
    for width in range(2, GPU_TOKENS + 1):
        with backend(only(width)):
            guarantee = probe(model.target, text(model))
        assert guarantee.identical == (width > 2), width
        assert guarantee.num_tokens == (width - 1 if width > 2 else GPU_TOKENS), width


@pytest.mark.parametrize("width", cases(range(GPU_TOKENS + 1, MAX_DEPTH + 2), (GPU_TOKENS + 1, 13, MAX_DEPTH + 1)))
def test_a_single_wider_one_is_found_too(engine: Engines, width: int) -> None:
    model = engine("dense")
    with backend(only(width)):
        assert probe(model.target, text(model), plan=SHORT).num_tokens == GPU_TOKENS


def test_a_context_that_memory_has_no_room_for_is_not_promised(
    engine: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that only the doctor looks at are left out then, and nothing is said of them."""
    model = engine("dense")
    model.target.text_config["max_position_embeddings"] = 1 << 16
    cache = model.target.make_cache()
    model.target.forward(mx.array([text(model, PREFIX_TOKENS)]), cache)
    a_token = sum(snapshot(part).nbytes for part in leaf_caches(cache) if is_trimmable(part)) // PREFIX_TOKENS

    def leave_room_for(context: int) -> None:
        room = int(a_token * context / MEMORY_FRACTION)
        monkeypatch.setattr("mlxmtp.exactness.compare.usable_memory", lambda: mx.get_active_memory() + room)

    leave_room_for(5_000)
    guarantee = probe(model.target, text(model))
    assert (guarantee.promise, guarantee.context, guarantee.complete) == ("distribution", 16_800, True)
    assert guarantee.because.endswith("after 16,800 tokens: it takes too much memory")
    leave_room_for(20_000)
    guarantee = probe(model.target, text(model), plan=ProbePlan((PREFIX_TOKENS, 16_800, 33_600)))
    assert (guarantee.promise, guarantee.context) == ("identical", 16_800)


@pytest.mark.parametrize("identity", cases(IDENTITIES, ("fast",)))
def test_what_holds_for_few_rows_is_not_promised_for_more(
    engine: Engines, identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does the engine's own choice go beyond; a GPU, which takes other kernels there, is not even asked."""
    model = engine("dense")
    with backend(lambda rows: 3 if rows > GPU_TOKENS else 1):
        guarantee = probe(model.target, text(model), identity, SHORT)
    assert (guarantee.promise, guarantee.num_tokens) == ("identical", GPU_TOKENS)
    assert [guarantee.at(depth) for depth in (None, GPU_TOKENS - 1, GPU_TOKENS)] == [
        "identical",
        "identical",
        "distribution",
    ]
    monkeypatch.setattr(Target, "max_fast_tokens", GPU_TOKENS)
    assert probe(model.target, text(model), identity, SHORT).num_tokens == GPU_TOKENS


@pytest.mark.parametrize("threshold", [1024, 4096])
def test_attention_that_changes_at_a_long_context_is_found(engine: Engines, threshold: int) -> None:
    """As Metal's does, which splits its keys from there on; the tiny models were made for fewer than 4096."""
    model = engine("dense")
    model.target.text_config["max_position_embeddings"] = 1 << 15
    found: list[Finding] = []
    with backend(narrow, attends=lambda rows, keys: 3 if rows > 1 and keys >= threshold else 1):
        guarantee = probe(model.target, text(model), on_finding=lambda _, finding: found.append(finding))
    assert guarantee.promise == "distribution"
    assert [finding.equal for finding in found] == [context < threshold for context in QUICK.contexts][: len(found)]


def test_every_length_is_compared_at_long_contexts(engine: Engines) -> None:
    model = engine("dense")
    for plan in (QUICK, replace(FULL, contexts=FULL.contexts[:3])):
        for width in (3, 4, 6, 7):
            with backend(narrow, attends=lambda rows, keys, width=width: 3 if rows == width and keys >= 1000 else 1):
                assert probe(model.target, text(model), plan=plan).num_tokens == width - 1, (plan, width)


def test_logits_that_are_not_finite_show_nothing(engine: Engines) -> None:
    model = engine("dense")
    weight = model.target.model.layers[0].mlp.down_proj.weight
    model.target.model.layers[0].mlp.down_proj.weight = mx.full(weight.shape, float("nan"))
    guarantee = probe(model.target, text(model))
    assert (guarantee.promise, guarantee.complete) == ("distribution", False)
    assert "not finite" in guarantee.because


def test_what_breaks_shows_nothing(engine: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    model = engine("dense")
    opened = model.target.open
    for error in (RuntimeError("[malloc] Unable to allocate"), MemoryError(), KeyError("x")):

        def breaks(tokens: mx.array, cache: Any, error: Exception = error) -> Any:
            if tokens.shape[1] > 2:
                raise error
            return opened(tokens, cache)

        monkeypatch.setattr(model.target, "open", breaks)
        for identity in IDENTITIES:
            guarantee = probe(model.target, text(model), identity)
            found = guarantee.promise, guarantee.complete, guarantee.min_tokens
            assert found == ("distribution", False, 1), (error, identity)
            assert type(error).__name__ in guarantee.because, (error, identity)
            assert model.target.min_tokens == 1, "it is left as it was"


def test_a_single_token_is_text_enough(engine: Engines) -> None:
    model = engine("dense")
    assert probe(model.target, [5]).promise == "identical"


def test_a_window_that_fills_within_a_pass_is_compared(engine: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rows attend as they do alone: to the filled slots, without a mask, which can have other kernels."""
    model, stock = engine("window"), mx.fast.scaled_dot_product_attention
    window, contexts = model.target.text_config["sliding_window"], []

    def attend(q: mx.array, k: mx.array, v: mx.array, *, mask: Any = None, **options: Any) -> mx.array:
        y = stock(q, k, v, mask=mask, **options)
        return y[..., ::-1] if isinstance(mask, mx.array) and k.shape[0] > 1 else y

    monkeypatch.setattr(mx.fast, "scaled_dot_product_attention", attend)
    guarantee = probe(model.target, text(model), plan=SHORT, on_finding=lambda _, f: contexts.append(f.context))
    assert (guarantee.promise, guarantee.num_tokens) == ("identical", MAX_DEPTH + 1)
    assert contexts == [PREFIX_TOKENS, window - 3]


def test_a_window_is_compared_though_the_doctors_longest_context_has_no_room(
    engine: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, contexts = engine("window"), []
    model.target.text_config["max_position_embeddings"] = 1 << 16
    monkeypatch.setattr("mlxmtp.exactness.compare.usable_memory", mx.get_active_memory)
    plan = ProbePlan((PREFIX_TOKENS, FULL.contexts[-1]))
    assert probe(model.target, text(model), plan=plan, on_finding=lambda _, f: contexts.append(f.context)).identical
    assert contexts == [PREFIX_TOKENS, model.target.text_config["sliding_window"] - 3]


def test_what_a_pass_leaves_is_compared(engine: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rejected draft that stays in the cache shows in the next token."""
    model, opens = engine("dense"), Target.open

    def keeps_all(target: Target, tokens: mx.array, cache: Any) -> Any:
        found = opens(target, tokens, cache)
        commit = found.commit
        found.commit = lambda kept: commit(tokens.shape[1] if tokens.shape[1] == 4 else kept)
        return found

    monkeypatch.setattr(Target, "open", keeps_all)
    assert probe(model.target, text(model), plan=SHORT).num_tokens == 3


def test_passes_at_load(engine: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every length that auto uses after every context, in some 70 passes at most; the total is known."""
    model = engine("dense")
    model.target.text_config["max_position_embeddings"] = 1 << 15
    for most, passes in ((4, 32), (5, 41), (GPU_TOKENS, 68)):
        found: list[Finding] = []
        counted: list[tuple[int, int]] = []
        monkeypatch.setattr(Target, "max_fast_tokens", most)
        probe(
            model.target,
            text(model),
            on_finding=lambda _, finding, found=found: found.append(finding),
            on_pass=lambda *count, counted=counted: counted.append(count),
        )
        assert [finding.context for finding in found] == list(QUICK.contexts)
        assert {finding.agreed for finding in found} == {most}
        assert counted == [(done, passes) for done in range(1, passes + 1)]
