"""Drafts on trunks with layers that run row by row: tokens and caches of plain decoding, alone and with a neighbour."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path

import pytest
from mlx_lm.utils import load_model

from mlxmtp.checkpoints import open_checkpoint
from mlxmtp.decoding.depth import Plan
from mlxmtp.decoding.loop import RoundLoop, Turn, never_stop
from mlxmtp.decoding.sampler import Sampler
from mlxmtp.decoding.sampling import Sampling
from mlxmtp.decoding.sequence import Sequence
from mlxmtp.targets import Target, load_target, why_not_shared
from tests.grids import grid
from tests.scripted import Depths, ScriptedDrafter, assert_same_state, snapshot
from tests.targets.every_model import STATES, VOCAB
from tests.targets.sweep import PROMPT, decode, reference, write_checkpoint

DEPTHS = (4, 2, 0, 3, 1, 0, 0, 4)
RIGHT = (0, 9, 1, 2, 9, 3)
"""Drafts of a round that are right; the others are rejected."""
FEW = ((5, 50.0), (6, 50.0))
"""Of two tokens, a text soon repeats itself, and not for long."""


class Lookups(Depths):
    """Looks up four tokens whenever there is a match."""

    max_lookup = 4

    def _plan(self, match: int) -> Plan:
        own = super()._plan(match)
        return Plan(self.max_lookup, "lookup") if match else own


def prefilled(target: Target, prompt: list[int]) -> Sequence:
    sequence = Sequence(target, None)
    sequence.prefill(prompt)
    return sequence


def tokens_of(target: Target, turns: list[Turn], *, together: bool) -> list[list[int]]:
    """The tokens of turns that share their passes, or that take turns."""
    loop, found = RoundLoop(target), [[] for _ in turns]
    while going := [turn for turn in turns if turn.finish is None]:
        for group in [going] if together else [[turn] for turn in going]:
            for turn, outcome in loop.round(group, ahead=together).items():
                assert not isinstance(outcome, Exception), outcome
                found[turns.index(turn)] += outcome.tokens
    for turn in turns:
        turn.close()
    return found


@pytest.mark.parametrize(
    ("kind", "count"),
    grid(STATES, (24, 200), default=lambda kind, count: count == 24 and kind in ("nemotron_h", "bailing_hybrid")),
)
def test_drafts_leave_the_tokens_and_caches_of_mlx_lm(kind: str, count: int, tmp_path: Path) -> None:
    """Drafts that are right, wrong from some on, and looked up; two turns at once, which end at different times."""
    write_checkpoint(kind, tmp_path)
    target, theirs = load_target(open_checkpoint(tmp_path)), load_model(tmp_path)[0]
    prompts, greedy = [PROMPT, PROMPT[:5]], Sampler(Sampling())
    expected = [reference(theirs, prompt, count - 7 * i) for i, prompt in enumerate(prompts)]
    caches = []
    for prompt, tokens in zip(prompts, expected, strict=True):
        plain = prefilled(target, prompt)
        assert decode(plain, len(tokens)) == tokens
        caches.append(snapshot(plain.cache))
    for together in {False, why_not_shared(target) is None}:
        turns = []
        for i, (prompt, tokens) in enumerate(zip(prompts, expected, strict=True)):
            drafter = ScriptedDrafter(prompt + tokens, cycle(RIGHT[i:]), VOCAB)
            policy = Depths(*DEPTHS[i:] * count)
            turns.append(Turn(prefilled(target, prompt), drafter, greedy, policy, never_stop, len(tokens)))
        assert tokens_of(target, turns, together=together) == expected, together
        for turn, cache in zip(turns, caches, strict=True):
            assert_same_state(snapshot(turn.sequence.cache), cache, together)
    law = Sampling(1.0, seed=5, logit_bias=FEW)
    plain, looked_up = prefilled(target, PROMPT), prefilled(target, PROMPT)
    policies = Depths(0), Lookups(0)
    turns = [
        Turn(own, None, Sampler(law), policy, never_stop, count)
        for own, policy in zip((plain, looked_up), policies, strict=True)
    ]
    first, second = tokens_of(target, turns, together=False)
    assert first == second
    rounds = [one for one in policies[1].rounds if one.from_lookup]
    assert any(one.accepted for one in rounds)
    assert any(one.accepted < one.drafted for one in rounds)
    assert_same_state(snapshot(looked_up.cache), snapshot(plain.cache))
