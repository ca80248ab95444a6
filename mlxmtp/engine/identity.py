"""Verdicts on the text of an engine: looked up, measured, and for `mlxmtp doctor` examined in full."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mlxmtp.engine.model_key import target_key
from mlxmtp.engine.prompt import encode
from mlxmtp.exactness.batch_invariant import Kernel
from mlxmtp.exactness.few_rows import available, few_row_matmul
from mlxmtp.exactness.greedy import GreedyRun, greedy_run
from mlxmtp.exactness.guarantee import IDENTITIES, Guarantee, Identity
from mlxmtp.exactness.probe import Finding, ProbePlan, Strategy, apply_guarantee, probe, still_holds
from mlxmtp.exactness.store import cache_file, load_guarantee, save_guarantee
from mlxmtp.heads.check import TEXT

if TYPE_CHECKING:
    from pathlib import Path

    from mlxmtp.engine.engine import Engine

DEPTH, TOKENS = 3, 128
"""Of a greedy run."""
PARTED = "texts part where rounding does not explain it; please report this output"
KERNELS: tuple[Kernel, ...] = (few_row_matmul,) if available() else ()
"""Kernels of our own, for strict identity to use where they are found equal and faster."""


def settle(engine: Engine, identity: Identity) -> Guarantee:
    """The verdict on an identity, whose arithmetic the engine's target has from now on.

    Where none is kept from an earlier run, it is measured: as long as some hundred tokens take.
    """
    file = _file(engine, identity)
    if found := load_guarantee(file):
        apply_guarantee(engine.target, found, KERNELS)
        chosen_anew = KERNELS and found.promise == "identical-one-row"
        if not chosen_anew or still_holds(engine.target, _text(engine), found, KERNELS):
            return found
    found = probe(engine.target, _text(engine), identity, kernels=KERNELS)
    save_guarantee(file, found)
    return found


@dataclass(frozen=True)
class Examined:
    """What was found of one identity.

    Args:
        verdict: what holds. findings: what it rests on, the last arithmetic's that was tried.
        run: a greedy text with and without MTP; None: there is no head.
        broken: what rounding does not explain; empty where all is well.
    """

    identity: Identity
    verdict: Guarantee
    findings: tuple[Finding, ...]
    run: GreedyRun | None
    broken: str


def examine(
    engine: Engine, plan: ProbePlan, tell: Callable[[str, int, int], None] = lambda *_: None
) -> Iterator[Examined]:
    """Measure an identity after the other in full; where the model keeps plain decoding's tokens as it is, only that.

    What is found is kept, and takes the place of what was found at load.

    Args:
        tell: told (doing, done, total).
    """
    for identity in IDENTITIES:
        found = _examined(engine, identity, plan, tell)
        save_guarantee(_file(engine, identity), found.verdict)
        yield found
        if found.verdict.promise == "identical":
            return


def _examined(engine: Engine, identity: Identity, plan: ProbePlan, tell: Callable[[str, int, int], None]) -> Examined:
    every: list[tuple[Strategy, Finding]] = []

    def heard(strategy: Strategy, finding: Finding) -> None:
        every.append((strategy, finding))
        tell(f"{identity}: one row held against several", sum(tried == strategy for tried, _ in every), len(plan))

    text = _text(engine)
    verdict = probe(engine.target, text, identity, plan, KERNELS, heard)
    findings = tuple(finding for strategy, finding in every if strategy == every[-1][0])
    if every[0][1].error or engine.mtp is None:
        return Examined(identity, verdict, findings, None, every[0][1].error)
    depth = min(DEPTH, verdict.num_tokens - 1)
    head, doing = engine.mtp, f"{identity}: greedy text"
    run = greedy_run(engine.target, head, text, depth, TOKENS, lambda done, total: tell(doing, done, total))
    # if no strategy holds, the first one computes the text
    asked = [finding for strategy, finding in every if strategy == every[0][0]]
    difference = max(finding.difference for finding in asked)
    broken = "" if run.same or (run.near_tie(difference) and not verdict.identical) else PARTED
    if not run.same and verdict.identical:
        because = f"a greedy text with MTP parts from plain decoding after {run.tokens} tokens, though all bits agreed"
        verdict = replace(verdict, promise="distribution", min_tokens=1, because=because)
        apply_guarantee(engine.target, verdict)
    return Examined(identity, verdict, findings, run, broken)


def _text(engine: Engine) -> list[int]:
    return encode(engine.tokenizer, TEXT, raw=True)


def _file(engine: Engine, identity: Identity) -> Path:
    return cache_file("identity", model=target_key(engine), identity=identity)  # with a head and without it the same
