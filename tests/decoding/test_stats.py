"""Statistics of a turn, against values worked out by hand."""

from __future__ import annotations

import pytest

from mlxmtp.decoding.stats import PhaseTimes, Round, Stats, StatsAccumulator

TIMED = PhaseTimes(draft_s=0.1, verify_s=0.3, other_s=0.1)


def rounds() -> list[tuple[float, Round]]:
    """A prompt of 10 tokens, 4 of them in the caches, read by 2.0; then five rounds, the last cut by a stop."""
    return [
        (3.0, Round((1, 2, 3), drafted=3, accepted=2, evaluations=1)),
        (4.0, Round((4,), drafted=3, accepted=0, evaluations=3, phases=TIMED, num_sequences=3)),
        (5.0, Round((5,), drafted=0, accepted=0, evaluations=1)),
        (6.0, Round((6, 7, 8, 9), drafted=5, accepted=3, evaluations=1, from_lookup=True)),
        (8.0, Round((10,), drafted=4, accepted=4, evaluations=1, finish="stop")),
    ]


def tally(count: int = 5) -> StatsAccumulator:
    found = StatsAccumulator(prompt_tokens=10, started=1.0, reused=4)
    found.prefilled(2.0)
    for clock, one in rounds()[:count]:
        found.add(one, clock)
    return found


def test_tokens_are_those_that_belong_to_the_turn() -> None:
    """Of a round that a stop cuts short, one token here, not the five that verification let through."""
    for count, expected in enumerate((0, 3, 4, 5, 9, 10)):
        assert tally(count).stats(0).tokens == expected
    stats = tally().stats(7, "depth 3")
    assert (stats.prompt_tokens, stats.reused_tokens, stats.rounds) == (10, 4, 5)
    assert (stats.evaluations, stats.timed_rounds) == (7, 1)
    assert stats.tokens_per_round == 2.0
    assert (stats.peak_memory_bytes, stats.policy) == (7, "depth 3")


def test_drafts_of_the_head_and_of_the_text_are_counted_apart() -> None:
    """Rounds of 3, 3 and 4 drafts of which 2, 0 and 4 were accepted; a draft behind a rejected one is rejected."""
    stats = tally().stats(0)
    assert stats.drafted_by_depth == (3, 3, 3, 1)
    assert stats.accepted_by_depth == (2, 2, 1, 1)
    assert stats.acceptance_by_depth == pytest.approx((2 / 3, 2 / 3, 1 / 3, 1))
    assert (stats.drafted, stats.accepted) == (10, 6)
    assert (stats.looked_up, stats.looked_up_accepted) == (5, 3)


def test_rates_are_of_what_came_in_their_time() -> None:
    """6 tokens read in 1 s; 7 tokens in the 5 s after the first round, which one timed round splits 1 : 3 : 1."""
    stats = tally().stats(0)
    assert stats.ttft_s == 2.0
    assert stats.prefill_tps == 6.0
    assert stats.decode_tps == pytest.approx(7 / 5)
    assert (stats.draft_s, stats.verify_s, stats.other_s) == pytest.approx((1.0, 3.0, 1.0))
    assert (stats.longest_pause_s, tally(4).stats(0).longest_pause_s) == (2.0, 1.0), "not that before the first round"


def test_tokens_are_counted_by_the_turns_that_shared_their_pass() -> None:
    assert tally(1).stats(0).tokens_by_sequences == (3,)
    assert tally().stats(0).tokens_by_sequences == (9, 0, 1)
    assert Stats.from_dict(tally().stats(0).to_dict()) == tally().stats(0)


def test_without_a_timed_round_all_time_is_verification() -> None:
    stats = tally(1).stats(0)
    assert (stats.decode_tps, stats.draft_s, stats.verify_s, stats.other_s) == (0.0, 0.0, 0.0, 0.0)
    found = StatsAccumulator(prompt_tokens=1, started=0.0)
    for clock in (1.0, 2.0, 4.0):
        found.add(Round((1,), 0, 0, 1), clock)
    stats = found.stats(0)
    assert (stats.draft_s, stats.verify_s, stats.other_s) == (0.0, 3.0, 0.0)
    assert stats.acceptance_by_depth == ()
