"""What is promised and chosen on machines like an M1, an M3 and an M5, by stand-ins; nothing here ran on Metal."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import mlx.core as mx
import pytest

from mlxmtp import Engine
from mlxmtp.exactness.compare import PassComparison
from mlxmtp.exactness.guarantee import Guarantee
from mlxmtp.exactness.probe import QUICK, ProbePlan, _show, probe
from mlxmtp.exactness.strategy import Strategy, strategies, strategy_of
from mlxmtp.targets import Target
from mlxmtp.targets.target import heads_per_key
from tests.exactness.conftest import text
from tests.exactness.stand_in import LAUNCH, M1, M1_MAX, M1_ULTRA, M3, M5, Clock, machine, narrow, own, wide
from tests.grids import cases
from tests.running import generated, reference

Engines = Callable[[str], Engine]
SHORT = ProbePlan((32,))
MACHINES = {"M1": M1, "M3": M3, "M5": M5}


class FewRows:
    """A kernel for few rows with the bits of one: it reads the weights once, at a cost of its own."""

    def __init__(self, clock: Clock, cost: float) -> None:
        self.clock, self.cost = clock, cost

    def __call__(
        self, x: mx.array, w: mx.array, scales: mx.array, biases: mx.array, group_size: int, bits: int
    ) -> mx.array:
        before = self.clock.now
        rows = [mx.quantized_matmul(row[None], w, scales, biases, group_size=group_size, bits=bits) for row in x]
        self.clock.now = before + LAUNCH + self.cost
        return mx.concatenate(rows)


def test_the_longest_fast_pass_knows_heads_and_generation(engine: Engines) -> None:
    target = engine("window").target
    heads = target.text_config["num_attention_heads"] // target.text_config["num_global_key_value_heads"]
    assert heads > target.text_config["num_attention_heads"] // target.text_config["num_key_value_heads"]
    assert target._heads_per_key == heads, "layers differ, and the most counts"
    stated = {"num_attention_heads": 16, "num_key_value_heads": 8, "num_global_key_value_heads": 2}
    assert heads_per_key(stated, ()) == 8
    for which, per_key, expected in [
        *((M1, 1, 8), (M1, 6, 5), (M1, 8, 4), (M1, 16, 2), (M1, 64, 2)),
        *((M3, 1, 8), (M3, 6, 5), (M3, 8, 4)),
    ]:
        with machine(which, per_key):
            assert target.max_fast_tokens == expected, (which.generation, per_key)
    for which, expected in ((M1, 5), (M1_MAX, 6), (M1_ULTRA, 8), (M3, 0), (M5, 0)):
        with machine(which):
            assert target.one_row_products == expected, which
    assert target.max_fast_tokens > 1 << 20, "a CPU has no such limit"


def test_no_pass_crosses_a_bound_of_keys(engine: Engines) -> None:
    """Beyond it attention has another order, of which plain decoding has none until its own keys are as many."""
    model = engine("dense")
    with machine(M1_MAX):
        for bound in (1024, 4096, 8192, 16_384, 32_768, 65_536):
            room = [model.target.longest_pass(offset) for offset in range(bound - 5, bound + 1)]
            assert room[:5] == [4, 3, 2, 1, 1], bound
            assert room[5] >= 1023, bound
        opened, passes = model.target.open_shared, []

        def watched(tokens: list[mx.array], caches: list[Any]) -> Any:
            offset = max(layer.offset for layer in caches[0] if hasattr(layer, "offset"))
            passes.append((offset, tokens[0].shape[1]))
            return opened(tokens, caches)

        prompt = text(model, 1014)
        plain = reference(model, prompt, 24)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(model.target, "open_shared", watched)
            assert generated(model, prompt, 24, 4) == plain
    assert any(tokens == 5 for _, tokens in passes)
    for offset, tokens in passes:
        assert tokens == 1 or not offset + 1 <= 1024 <= offset + tokens, (offset, tokens)
    model.target.min_tokens = 2
    with machine(M1_MAX):
        assert [model.target.longest_pass(offset) for offset in (1020, 1021, 1022, 1023)] == [2, 1, 1, 3071]
    assert model.target.longest_pass(1020) > 1 << 20, "a CPU has no such bound"


def test_chips_differ_in_rows_and_in_attention_over_many_keys(engine: Engines) -> None:
    """Rows of a product, and blocks of keys by rows times query heads."""
    model = engine("dense")  # half precision rounds attention's differences away here
    plan = ProbePlan((32, 1100, 4200))
    model.target.text_config["max_position_embeddings"] = 1 << 15
    for which, heads, expected in (
        (M1, 4, ("identical", 5)),
        (M1, 2, ("distribution", None)),
        (M1_MAX, 5, ("identical", 6)),
        (M1_MAX, 4, ("distribution", None)),
        (M1_ULTRA, 4, ("identical", 8)),
    ):
        with machine(which, heads):
            found = probe(model.target, text(model), "fast", plan)
        assert (found.promise, found.num_tokens if found.identical else None) == expected, (which, heads)


@pytest.mark.parametrize(("heads", "depth"), [(6, 4), (8, 3)])
def test_fast_on_an_m1_is_token_identical_at_the_depths_that_auto_uses(engine: Engines, heads: int, depth: int) -> None:
    model = engine("4-bit")
    with machine(M1, heads):
        guarantee = probe(model.target, text(model), "fast", QUICK)
        assert (guarantee.promise, guarantee.num_tokens, guarantee.min_tokens) == ("identical", depth + 1, 1)
        assert [guarantee.at(n) for n in (None, depth, depth + 1)] == ["identical", "identical", "distribution"]
        model.__dict__["guarantee"] = guarantee
        assert model.policies._auto_depths == (depth, depth)
        prompt = text(model, 28)
        plain = reference(model, prompt, 10)
        for n in range(1, depth + 1):
            assert generated(model, prompt, 10, n) == plain, n


def test_fast_on_an_m3_promises_the_distribution_and_canonical_takes_width_two(engine: Engines) -> None:
    for which in (M3, M5):
        model = engine("4-bit")
        with machine(which, heads_per_key=4):
            assert probe(model.target, text(model), "fast", SHORT).promise == "distribution"
            guarantee = probe(model.target, text(model), "canonical", SHORT)
            assert (guarantee.promise, guarantee.min_tokens, guarantee.num_tokens) == ("identical-canonical", 2, 5)


def chosen_and_true(
    model: Engine, kernels: Sequence[Any], clock: Clock
) -> tuple[Guarantee, dict[Strategy, float], float]:
    """What strict chooses, the cost of a pass over 4 rows by each strategy that holds, and by the chosen one."""
    target = model.target
    guarantee = probe(target, text(model), "strict", SHORT, kernels)
    compared, most, costs = PassComparison(target, text(model), kernels), target.max_fast_tokens, {}
    for strategy in strategies(target, "strict", most):
        if _show(compared, strategy, SHORT, most, None).num_tokens >= 4:
            costs[strategy] = compared.seconds(strategy, 4)
    return guarantee, costs, compared.seconds(strategy_of(guarantee), 4)


@pytest.mark.parametrize(
    ("name", "kernel"),
    cases(product(MACHINES, (None, 1.2, 9.0)), (("M1", None), ("M1", 1.2), ("M5", 9.0))),
)
def test_strict_is_never_slower_than_its_cheapest_true_way(engine: Engines, name: str, kernel: float | None) -> None:
    model = engine("4-bit")
    with machine(MACHINES[name]) as clock:
        kernels = [FewRows(clock, kernel)] if kernel else []
        guarantee, costs, cost = chosen_and_true(model, kernels, clock)
        assert guarantee.identical
        assert guarantee.num_tokens == 5
        assert cost <= min(costs.values()) + 1e-9, {strategy: round(cost, 2) for strategy, cost in costs.items()}
        native = strategy_of(guarantee).promise == "identical"
        assert native == (name == "M1" and kernel != 1.2), "MLX's own arithmetic where it holds and nothing is faster"


def test_an_m1_shares_reads_for_its_matrices_where_attention_differs(engine: Engines) -> None:
    model = engine("experts")
    with machine(M1, attends=wide_attention):
        guarantee = probe(model.target, text(model), "strict", SHORT)
        assert (guarantee.promise, guarantee.stock, guarantee.attention) == ("identical-one-row", True, False)
        assert "stock" in guarantee.ways.values()


def test_experts_and_attention_run_together_where_their_bits_are_equal(engine: Engines) -> None:
    model = engine("experts")
    prompt = text(model, 16)
    with machine(M3, dense=narrow):
        plain = reference(model, prompt, 10)
        guarantee = probe(model.target, text(model), "strict", SHORT)
        assert (guarantee.promise, guarantee.stock, guarantee.attention) == ("identical-one-row", True, True)
        assert "stock" in guarantee.ways.values()
        assert generated(model, prompt, 10, 3) == plain
    model = engine("experts")
    with machine(M3, dense=narrow, gathered=own):
        guarantee = probe(model.target, text(model), "strict", SHORT)
        assert guarantee.identical
        assert "stock" not in guarantee.ways.values()


def test_stock_products_are_no_choice_where_the_table_does_not_name_them(engine: Engines) -> None:
    """Though they agree on every input of the comparison: half precision rounds differences away."""
    model = engine("4-bit")
    with machine(M3, attends=wide_attention), pytest.MonkeyPatch.context() as patch:
        patch.setattr("mlxmtp.exactness.variants._same", lambda *_: True)
        probe(model.target, text(model), "strict", SHORT)
        patched = next(one for one in model.target.listeners if hasattr(one, "ways"))
        assert "stock" not in patched.ways.values()


def wide_attention(rows: int, _: int) -> int:
    return wide(rows)


Pairs = set[tuple[int, int]]
"""Lengths of passes, and the contexts after which they differ."""


class Differing:
    """`Target.open` with other bits in some passes, or in the pass of one token that follows some."""

    def __init__(self, target: Target, contexts: Sequence[int], passes: Pairs, after: Pairs) -> None:
        self.opened, self.contexts = target.open, contexts
        self.passes, self.after = passes, after
        self.last = (0, 0)

    def __call__(self, tokens: mx.array, cache: Any) -> Any:
        offset = max(layer.offset for layer in cache if hasattr(layer, "offset"))
        here = tokens.shape[1], max(context for context in self.contexts if context <= offset)
        found = self.opened(tokens, cache)
        if here in self.passes or (here[0] == 1 and self.last in self.after):
            found.logits = found.logits + 2.0**-10
        self.last = here
        return found


def test_nothing_is_claimed_that_does_not_hold(engine: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bits change at random lengths of passes after random contexts of the plan, in the pass or in what is kept."""
    model, chance = engine("dense"), random.Random(23)
    model.target.text_config["max_position_embeddings"] = 1 << 15
    monkeypatch.setattr(Target, "max_fast_tokens", 6)
    contexts = (32, 1100, 4200)
    for trial in range(8):
        pairs = {(chance.randrange(2, 9), chance.choice(contexts)) for _ in range(chance.randrange(4))}
        after = {pair for pair in pairs if pair[1] == 32 and chance.random() < 0.5}
        with monkeypatch.context() as patch:
            patch.setattr(model.target, "open", Differing(model.target, contexts, pairs - after, after))
            guarantee = probe(model.target, text(model), "fast", ProbePlan(contexts))
        expected = min([6, *(rows - 1 for rows, _ in pairs)])
        assert guarantee.identical == (expected > 1), (trial, pairs)
        if guarantee.identical:
            assert guarantee.num_tokens == expected, (trial, pairs, after)
