"""Evaluate held-out loss of the trunk and teacher-forced greedy acceptance of the head, by kind of text and depth."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from demo_training.corpora import KINDS
from demo_training.model import DEPTHS, DemoModel
from demo_training.tokens import Rows


@dataclass(frozen=True)
class Score:
    loss: float
    acceptance: tuple[float, ...]  # by depth, 1 first

    @property
    def mean(self) -> float:
        return sum(self.acceptance) / len(self.acceptance)


def evaluate(model: DemoModel, held_out: Rows, rows_per_kind: int) -> dict[str, Score]:
    return {kind: score(model, held_out.spread(kind, rows_per_kind)) for kind in KINDS}


@torch.no_grad()
def score(model: DemoModel, rows: Iterable[np.ndarray]) -> Score:
    """Return loss and acceptance: the share of positions at which the head's first choice is the trunk's."""
    loss, seen = 0.0, 0
    agreed, compared = torch.zeros(DEPTHS), torch.zeros(DEPTHS)
    for row in rows:
        tokens = torch.from_numpy(row)[None]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = model.hidden(tokens[:, :-1])
            logits = F.linear(hidden, model.embedding)
            outputs = model.head_outputs(hidden, tokens[:, 1:])
            drafts = [F.linear(output, model.embedding).argmax(-1) for output in outputs]
        loss += F.cross_entropy(logits[0].float(), tokens[0, 1:], reduction="sum").item()
        seen += logits.shape[1]
        choice = logits.argmax(-1)
        for index, draft in enumerate(drafts):
            same = draft[:, index:-1] == choice[:, index + 1 :]  # row i drafts x[i+2]
            agreed[index] += same.sum()
            compared[index] += same.numel()
    return Score(loss / seen, tuple((agreed / compared).tolist()))


def table(scores: dict[str, Score]) -> str:
    """Return the scores as a Markdown table."""
    depths = " | ".join(f"depth {depth + 1}" for depth in range(DEPTHS))
    lines = [f"| text | loss (nats a token) | {depths} | mean |", "| --- |" + " ---: |" * (DEPTHS + 2)]
    for kind, result in scores.items():
        cells = " | ".join(f"{share:.2f}" for share in (*result.acceptance, result.mean))
        lines.append(f"| {kind} | {result.loss:.3f} | {cells} |")
    return "\n".join(lines)
