"""The statistics of the report, against numbers computed by hand."""

import pytest

from mlxmtp.bench.cost_curve import CostCurve
from mlxmtp.bench.figures import (
    Spread,
    drift,
    ideal_speedup,
    median_cost,
    pooled,
    spread,
)

COST = CostCurve(256, (0.010, 0.012, 0.015, 0.020), 0.001, 0.002)


def test_spread():
    assert spread([3.0, 1.0, 2.0, 10.0]) == Spread(2.5, 1.0, 10.0, 4)
    assert spread(iter([5.0])) == Spread(5.0, 5.0, 5.0, 1)
    assert spread([]) is None


def test_drift_compares_like_with_like():
    """A fast text at the beginning and a slow one at the end are no drift."""
    steady = [(t, text, rate) for t, (text, rate) in enumerate([("a", 100.0), ("b", 10.0)] * 3)]
    found = drift(steady)
    assert found == {"first": 1.0, "last": 1.0, "change": 0.0, "noticed": False, "runs": 6}


@pytest.mark.parametrize(("end", "noticed"), [(98.0, False), (90.0, True), (110.0, True)])
def test_drift_is_noticed_where_it_is_more_than_a_few_percent(end, noticed):
    rates = [(1.0, "a", 100.0), (2.0, "a", 100.0), (3.0, "a", end)]
    found = drift(rates[::-1])  # by their time, not by their order
    assert found is not None
    assert found["change"] == pytest.approx(end / 100 - 1)
    assert found["noticed"] is noticed


@pytest.mark.parametrize("plain", [[], [(1.0, "a", 100.0)], [(1.0, "a", 100.0), (2.0, "b", 50.0), (3.0, "c", 1.0)]])
def test_no_word_on_drift_without_repeats(plain):
    assert drift(plain) is None


def test_the_cost_curve_is_in_passes_over_one_row():
    assert COST.curve == pytest.approx((1.0, 1.2, 1.5, 2.0))
    assert COST.draft_cost == pytest.approx(0.1)


def test_ideal_speedup_is_that_of_the_paper():
    """S = E / (C(k + 1) + k c) if a plain round takes the time of a pass over one token."""
    one_row = COST.pass_s[0]
    assert ideal_speedup(3.0, 1 / one_row, COST, 2) == pytest.approx(3.0 / (1.5 + 2 * 0.1))
    assert ideal_speedup(1.0, 1 / one_row, COST, 0) == pytest.approx(1.0)
    assert ideal_speedup(3.0, 1.25 / one_row, COST, 2) == pytest.approx(0.8 * 3.0 / (1.5 + 2 * 0.1))
    assert ideal_speedup(4.0, 1 / one_row, COST, 4) is None, "no pass over five rows was timed"


def test_median_cost_takes_each_part_by_itself():
    costs = [
        CostCurve(8, (1.0, 5.0), 3.0, 9.0),
        CostCurve(10, (2.0, 4.0), 1.0, 8.0),
        CostCurve(15, (3.0, 6.0), 2.0, 7.0),
    ]
    assert median_cost(costs) == CostCurve(11, (2.0, 5.0), 2.0, 8.0)


def test_pooled():
    assert pooled([(1, 2, 3), (), (10, 20)]) == [11, 22, 3]
    assert pooled([]) == []
