"""Measures every identity in full, for `mlxmtp doctor`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from mlxmtp.engine.store import ModelFacts, guarantee_file, own_kernels
from mlxmtp.exactness.compare import Finding, PassComparison
from mlxmtp.exactness.greedy import GreedyRun, greedy_run
from mlxmtp.exactness.guarantee import IDENTITIES, Guarantee, Identity
from mlxmtp.exactness.probe import ProbePlan, apply_guarantee, probe
from mlxmtp.exactness.store import save_guarantee
from mlxmtp.exactness.strategy import Strategy, strategy_of

DEPTH = 3
"""Drafts in a round of the greedy run."""
TOKENS = 128
"""Tokens of the greedy run."""
PARTED = "texts part where rounding does not explain it; please report this output"


@dataclass(frozen=True)
class Examination:
    """The measurement of one identity.

    Args:
        guarantee: what holds.
        findings: the comparisons that it rests on; where nothing holds, those of the last strategy tried.
        run: a greedy text with and without MTP; None without a head.
        broken: a difference that rounding does not explain; empty where there is none.
        pass_seconds: time of a pass over 4 tokens, or as many as the guarantee covers.
    """

    identity: Identity
    guarantee: Guarantee
    findings: tuple[Finding, ...]
    run: GreedyRun | None
    broken: str
    pass_seconds: float = 0.0


def examine(
    facts: ModelFacts, text: list[int], plan: ProbePlan, on_progress: Callable[[str, int, int], None] = lambda *_: None
) -> Iterator[Examination]:
    """Measure one identity after the other; stop after "fast" where it already gives plain decoding's tokens.

    Each guarantee is saved in place of the one that was measured at load.

    Args:
        text: token ids to measure on.
        on_progress: called with (description, done, total).
    """
    for identity in IDENTITIES:
        found = _examine_identity(facts, identity, text, plan, on_progress)
        save_guarantee(guarantee_file(facts, identity), found.guarantee)
        yield found
        if found.guarantee.promise == "identical":
            return


def _examine_identity(
    facts: ModelFacts,
    identity: Identity,
    text: list[int],
    plan: ProbePlan,
    on_progress: Callable[[str, int, int], None],
) -> Examination:
    tried: list[tuple[Strategy, Finding]] = []

    def on_pass(done: int, total: int) -> None:
        on_progress(f"{identity}: passes over several rows and over one", done, total)

    guarantee = probe(facts.target, text, identity, plan, own_kernels(), lambda *found: tried.append(found), on_pass)
    first, last = tried[0], tried[-1]
    chosen = strategy_of(guarantee) if guarantee.identical else last[0]
    findings = tuple(finding for strategy, finding in tried if strategy == chosen)
    if first[1].error or facts.head is None:
        return Examination(identity, guarantee, findings, None, first[1].error)
    depth = min(DEPTH, guarantee.num_tokens - 1)
    description = f"{identity}: greedy text"
    run = greedy_run(
        facts.target, facts.head, text, depth, TOKENS, lambda done, total: on_progress(description, done, total)
    )
    # where no strategy holds, the text is computed by the first
    difference = max(finding.difference for strategy, finding in tried if strategy == first[0])
    near_tie = run.near_tie(difference) and not guarantee.identical
    broken = "" if run.same or near_tie else PARTED
    if not run.same and guarantee.identical:
        because = f"a greedy text with MTP parts from plain decoding after {run.tokens} tokens, though all bits agreed"
        guarantee = replace(guarantee, promise="distribution", min_tokens=1, because=because, ways={})
        apply_guarantee(facts.target, guarantee)
    compared = PassComparison(facts.target, text, own_kernels())
    seconds = compared.seconds(strategy_of(guarantee), min(DEPTH + 1, guarantee.num_tokens))
    return Examination(identity, guarantee, findings, run, broken, seconds)
