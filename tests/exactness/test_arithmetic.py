"""Strict and canonical identity keep plain decoding's tokens on a backend that does not; and promise nothing more."""

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest

from mlxmtp import Engine, GenerationOptions, OptionError, load
from mlxmtp.exactness import batch_invariant, variants
from mlxmtp.exactness.probe import GPU_TOKENS, ProbePlan, probe
from mlxmtp.targets import Target
from tests.exactness.conftest import KINDS, text
from tests.exactness.stand_in import backend, narrow, own, wide
from tests.grids import cases
from tests.running import generated, reference

Engines = Callable[[str], Engine]
SHORT = ProbePlan((32,))
TOKENS = 10
PARTING = {"4-bit": 11, "half": 12}
"""Prompt lengths after which texts of TOKENS tokens part at depth 3: of "4-bit" with `wide`, of "half" with `own`."""
LATTE = "I'd like a large latte, and what do you have without milk?"


@pytest.fixture(autouse=True)
def gpu_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Longer passes have no promise, as on the GPU that the backend stands for; the probe does not run them."""
    monkeypatch.setattr(Target, "max_fast_tokens", GPU_TOKENS)


def prompt(engine: Engine, kind: str) -> list[int]:
    return text(engine, PARTING.get(kind, 16))


@pytest.mark.parametrize("kind", cases(KINDS, ("4-bit",)))
def test_strict_writes_what_plain_decoding_writes(engine: Engines, kind: str) -> None:
    model = engine(kind)
    with backend():
        expected = reference(model, prompt(model, kind), TOKENS)
        if kind == "4-bit":
            assert generated(model, prompt(model, kind), TOKENS, 3) != expected, "the backend shows nothing"
        guarantee = probe(model.target, text(model), "strict", SHORT)
        assert (guarantee.promise, guarantee.because) == ("identical-one-row", "")
        for depth in (1, GPU_TOKENS - 1):
            assert generated(model, prompt(model, kind), TOKENS, depth) == expected, depth
        assert reference(model, prompt(model, kind), TOKENS) == expected, "mlx-lm's own decoding is as it was"


def one_order(rows: int, keys: int) -> int:
    """Attention of several rows as of one."""
    return 1


def test_canonical_is_not_kept_where_a_window_fills_at_other_tokens(engine: Engines) -> None:
    """Rows of a pass that fills a window attend alone; padded plain decoding fills it earlier than a longer pass."""
    model = engine("window")
    for law in (wide, own):
        with backend(narrow, attends=lambda rows, _, law=law: law(rows)):
            guarantee = probe(model.target, text(model), "canonical", SHORT)
            assert (guarantee.promise, model.target.min_tokens) == ("distribution", 1)


@pytest.mark.parametrize("kind", cases(KINDS, ("4-bit",)))
def test_canonical_writes_the_same_at_every_depth(engine: Engines, kind: str) -> None:
    model = engine(kind)
    with backend(attends=one_order if kind == "window" else None):
        guarantee = probe(model.target, text(model), "canonical", SHORT)
        assert (guarantee.promise, guarantee.min_tokens) == ("identical-canonical", 2)
        expected = generated(model, prompt(model, kind), TOKENS, 0)
        for depth in (1, GPU_TOKENS - 1):
            assert generated(model, prompt(model, kind), TOKENS, depth) == expected, depth


@pytest.mark.parametrize("kind", cases(["half", "4-bit", "window"], ("window",)))
def test_where_each_width_has_an_order_of_its_own_all_passes_get_one_width(engine: Engines, kind: str) -> None:
    model = engine(kind)
    with backend(own, attends=one_order if kind == "window" else None):
        plain = reference(model, prompt(model, kind), TOKENS)
        if kind == "half":
            assert generated(model, prompt(model, kind), TOKENS, 3) != plain, "the backend shows nothing"
        guarantee = probe(model.target, text(model), "canonical", SHORT)
        assert (guarantee.promise, guarantee.min_tokens) == ("identical-canonical", GPU_TOKENS)
        expected = generated(model, prompt(model, kind), TOKENS, 0)
        for depth in (1, 4):
            assert generated(model, prompt(model, kind), TOKENS, depth) == expected, depth
        assert probe(model.target, text(model), "strict", SHORT).promise == "identical-one-row"
        assert model.target.min_tokens == 1
        assert generated(model, prompt(model, kind), TOKENS, 3) == plain


def test_rows_go_through_one_by_one_where_gathering_changes_them_too(engine: Engines) -> None:
    model = engine("4-bit")
    with backend(gathered=wide):
        expected = reference(model, prompt(model, "4-bit"), TOKENS)
        guarantee = probe(model.target, text(model), "strict", SHORT)
        assert (guarantee.promise, guarantee.because) == ("identical-one-row", "")
        assert generated(model, prompt(model, "4-bit"), TOKENS, 3) == expected


@pytest.fixture
def small(raw_checkpoint: Callable[..., Path]) -> Path:
    return raw_checkpoint("qwen3_5")


def test_strict_gives_up_the_head_where_it_cannot_be_kept(small: Path) -> None:
    """Norms that depend on rows are beyond batch-invariant arithmetic."""
    with backend(narrow, norms=wide):
        model = load(small, identity="strict")
        assert (model.guarantee.promise, model.head) == ("distribution", None)
        assert "strict identity cannot be kept here: logits differ" in (model.plain_because or "")
        with pytest.raises(OptionError, match="strict identity cannot be kept here"):
            model.stream(LATTE, GenerationOptions(depth=1))
        written = model.generate(LATTE, GenerationOptions(max_tokens=12)).tokens
        assert written == load(small, mtp=False).generate(LATTE, GenerationOptions(max_tokens=12)).tokens


def test_canonical_has_the_width_that_it_needs(small: Path) -> None:
    for norms, width in ((narrow, 1), (wide, 2), (own, GPU_TOKENS)):
        with backend(narrow, norms=norms):
            target = load(small).target
            guarantee = probe(target, [5, 6, 7], "canonical", SHORT)
            assert (guarantee.identical, guarantee.min_tokens, target.min_tokens) == (True, width, width)


def test_nothing_at_all_can_be_kept(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend whose every pass comes out otherwise: both fall back to plain decoding."""
    noisy = iter(range(1, 1 << 20))
    forward = Target.forward
    monkeypatch.setattr(Target, "forward", lambda *args: _shifted(forward(*args), next(noisy)))
    for identity in ("strict", "canonical"):
        model = load(small, identity=identity)
        assert (model.head, model.guarantee.promise, model.target.min_tokens) == (None, "distribution", 1)


def _shifted(passed: tuple[mx.array, mx.array], by: int) -> tuple[mx.array, mx.array]:
    return passed[0] + by, passed[1]


def test_depths_that_were_not_shown_are_refused(small: Path) -> None:
    model = load(small, identity="strict")
    assert model.generate(LATTE, GenerationOptions(max_tokens=4, depth=GPU_TOKENS - 1)).tokens
    with pytest.raises(OptionError, match=rf"depth is {GPU_TOKENS}, but strict identity .* up to {GPU_TOKENS - 1}"):
        model.stream(LATTE, GenerationOptions(depth=GPU_TOKENS))
    assert load(small).generate(LATTE, GenerationOptions(max_tokens=4, depth=GPU_TOKENS)).tokens, (
        "fast promises nothing for them"
    )


@pytest.mark.exhaustive
def test_the_demo_with_strict_and_canonical() -> None:
    with backend():
        plain = load(mtp=False).generate(LATTE, GenerationOptions(max_tokens=32))
        strict = load(identity="strict")
        assert strict.guarantee.promise == "identical-one-row"
        found = strict.generate(LATTE, GenerationOptions(max_tokens=32))
        assert found.tokens == plain.tokens
        assert found.stats.accepted, "the head is at work"
        canonical = [
            load(mtp=mtp, identity="canonical").generate(LATTE, GenerationOptions(max_tokens=32))
            for mtp in (True, False)
        ]
        assert canonical[0].tokens == canonical[1].tokens
        assert not load().token_identical


def test_an_unknown_identity_is_refused() -> None:
    with pytest.raises(OptionError, match="identity is 'exact'; expected one of fast, strict, canonical"):
        load(identity="exact")


# -- kernels of our own ---------------------------------------------------------------------------------------


class Kernel:
    """An affine product of few rows, right or wrong; counts how often it is asked."""

    def __init__(self, error: float = 0.0) -> None:
        self.error = error
        self.calls = 0

    def __call__(
        self, x: mx.array, w: mx.array, scales: mx.array, biases: mx.array, group_size: int, bits: int
    ) -> mx.array:
        self.calls += 1
        packing = {"group_size": group_size, "bits": bits}
        rows = [mx.quantized_matmul(row[None], w, scales, biases, **packing) for row in x]
        return mx.concatenate(rows) + self.error


def shown(engine: Engine, kernel: Kernel) -> int:
    """Calls of the kernel in a text, once the ways are chosen; its tokens are plain decoding's."""
    with backend():
        expected = reference(engine, prompt(engine, "4-bit"), TOKENS)
        guarantee = probe(engine.target, text(engine), "strict", SHORT, kernels=[kernel])
        assert (guarantee.promise, guarantee.row_by_row) == ("identical-one-row", False), (
            "no way that is not equal was taken"
        )
        before = kernel.calls
        assert generated(engine, prompt(engine, "4-bit"), TOKENS, 3) == expected
        return kernel.calls - before


def test_kept_ways_are_compared_once_more_and_not_chosen_again(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with backend():
        first = load(small, identity="strict").guarantee
        assert first.promise == "identical-one-row"
        assert set(first.ways.values()) <= {"gathered", "row by row"}
        with monkeypatch.context() as patch:
            patch.setattr(batch_invariant, "fastest_equal", lambda *_: pytest.fail("a way was chosen again"))
            assert load(small, identity="strict").guarantee == first
    with backend(narrow, norms=own):  # as if what was kept did not hold
        assert load(small, identity="strict").head is None


def test_a_kernel_is_used_where_it_is_equal_and_faster(engine: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"variant": 1.0}
    monkeypatch.setattr(variants, "_seconds", lambda variant, *_: seconds.get(variant.__name__, 2.0))
    assert shown(engine("4-bit"), Kernel()) > 0
    seconds["variant"] = 3.0
    assert shown(engine("4-bit"), Kernel()) == 0, "slower"
    seconds["variant"] = 1.0
    assert shown(engine("4-bit"), Kernel(error=2.0**-6)) == 0, "not equal"
