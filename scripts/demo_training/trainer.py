"""Train in two phases: trunk and head together, then the head alone with the trunk frozen."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from demo_training.model import DemoModel, agreement_loss, next_token_loss
from demo_training.tokens import Rows

WARMUP_STEPS = 40
DECAY_SHARE = 0.45  # of the joint steps; the number of steps may change until decay begins
HEAD_RATE = 0.6  # where the head's rates start in its own phase, relative to the peak
MUON_RATE, ADAM_RATE = 4e-3, 3e-3
HEAD_WEIGHT = 0.2  # of the head's loss in the joint phase: enough to make hidden states look ahead
TEMPERATURE = 0.7  # below 1: greedy acceptance depends on the likeliest tokens
REPORT_EVERY = 20


@dataclass(frozen=True)
class Plan:
    """What to train on, and for how long; rows and lengths are in tokens."""

    steps: int
    head_steps: int
    rows: int
    head_rows: int  # of the rows, with head losses in the joint phase
    seed: int
    save_every: int
    minutes: float | None  # by which the joint phase should end, decay included


@dataclass
class Progress:
    """State of a run besides weights and optimiser state, for a run that goes on."""

    steps: int
    head_steps: int
    step: int = 0
    seconds: float = 0.0
    tokens: int = 0  # trained on with the trunk
    head_tokens: int = 0  # trained on with the head alone

    @property
    def joint(self) -> bool:
        return self.step < self.steps

    @property
    def decaying(self) -> bool:
        return self.step >= (1 - DECAY_SHARE) * self.steps

    @property
    def left(self) -> int:
        return self.steps + self.head_steps - self.step

    def rate(self) -> float:
        """Learning rate relative to its peak: a trapezoid, then a second fall in the head's own phase."""
        if self.joint:
            remaining = (self.steps - self.step) / (DECAY_SHARE * self.steps)
            return min(1.0, (self.step + 1) / WARMUP_STEPS, remaining)
        return HEAD_RATE * self.left / max(1, self.head_steps)


def optimizers(model: DemoModel) -> list[torch.optim.Optimizer]:
    """Muon for matrices inside layers, AdamW for embeddings, vectors and the two tiny gate projections."""
    matrices, others = [], []
    for name, parameter in model.named_parameters():
        inside = parameter.ndim == 2 and "embed_tokens" not in name and min(parameter.shape) > 8
        (matrices if inside else others).append(parameter)
    muon = torch.optim.Muon(matrices, lr=MUON_RATE, weight_decay=0.05, adjust_lr_fn="match_rms_adamw")
    adam = torch.optim.AdamW(others, lr=ADAM_RATE, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    return [muon, adam]


class Trainer:
    def __init__(self, model: DemoModel, train: Rows, plan: Plan, state_path: Path) -> None:
        self.model, self.train, self.plan, self.state_path = model, train, plan, state_path
        self.optimizers = optimizers(model)
        self.progress = Progress(plan.steps, plan.head_steps)
        self.next_token_loss: Callable[..., torch.Tensor] = next_token_loss
        self.agreement_loss: Callable[..., torch.Tensor] = agreement_loss

    def compile(self) -> None:
        self.model.compile()
        self.next_token_loss = torch.compile(next_token_loss, dynamic=False)
        self.agreement_loss = torch.compile(agreement_loss, dynamic=False)

    def save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "progress": asdict(self.progress),
        }
        partial = self.state_path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.state_path)  # so a kill while writing leaves the older state intact

    def load(self) -> None:
        if not self.state_path.is_file():
            sys.exit(f"nothing to go on from: {self.state_path} does not exist")
        state = torch.load(self.state_path, weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.progress = Progress(**state["progress"])
        if not self.progress.decaying:
            self.progress.steps = self.plan.steps
        self.progress.head_steps = self.plan.head_steps

    def start_from(self, path: Path) -> None:
        """Begin with a shallower model's weights, further layers as identities (Shen et al. 2022, arXiv:2203.06211)."""
        state = torch.load(path, weights_only=True)
        missing, unexpected = self.model.load_state_dict(state["model"], strict=False)
        if unexpected or any(".layers." not in name for name in missing):
            sys.exit(f"{path} is not of a shallower model of this shape: {(unexpected or missing)[0]} does not fit")
        for name in missing:
            if name.endswith(("o_proj.weight", "out_proj.weight", "down_proj.weight")):
                torch.nn.init.zeros_(self.model.get_parameter(name))
        before = Progress(**state["progress"])
        self.progress.seconds, self.progress.tokens = before.seconds, before.tokens
        self.progress.head_tokens = before.head_tokens

    def run(self) -> None:
        progress = self.progress
        paces: deque[float] = deque(maxlen=10)  # of the latest 200 steps: other programs come and go
        began = time.monotonic()
        while progress.left > 0:
            tokens = self.batch()
            if progress.joint:
                losses = self.joint_step(tokens)
                progress.tokens += tokens[:, 1:].numel()
            else:
                losses = self.head_step(tokens)
                progress.head_tokens += tokens[:, 1:].numel()
            self.update()
            progress.step += 1
            if progress.step % REPORT_EVERY == 0:
                lap = time.monotonic() - began
                began += lap
                progress.seconds += lap
                paces.append(lap / REPORT_EVERY)
                self.fit_to_minutes(sum(paces) / len(paces))
                self.report(losses, paces)
            if progress.step % self.plan.save_every == 0 or progress.step == progress.steps:
                self.save()
        progress.seconds += time.monotonic() - began
        self.save()

    def batch(self) -> torch.Tensor:
        return torch.from_numpy(self.train.batch(self.plan.seed, self.progress.step, self.plan.rows))

    def joint_step(self, tokens: torch.Tensor) -> tuple[float | None, float]:
        """Return the next-token loss on all rows, and the head's loss on the first rows."""
        few = self.plan.head_rows
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = self.model.hidden(tokens[:, :-1])
            loss = self.next_token_loss(hidden, self.model.embedding, tokens[:, 1:])
            outputs = self.model.head_outputs(hidden[:few], tokens[:few, 1:])
            head_loss = self.agreement_loss(outputs, hidden[:few], self.model.embedding, TEMPERATURE)
        (loss + HEAD_WEIGHT * head_loss).backward()
        return loss.item(), head_loss.item()

    def head_step(self, tokens: torch.Tensor) -> tuple[float | None, float]:
        """Return the head's loss on all rows, computed in the batch shape that is compiled. The trunk is frozen."""
        few = self.plan.head_rows
        starts = range(0, len(tokens) - few + 1, few)
        total = 0.0
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = self.model.hidden(tokens[:, :-1]).detach()
            for start in starts:
                rows = slice(start, start + few)
                leaf = hidden[rows].requires_grad_()  # as in the joint phase: nothing is compiled anew
                outputs = self.model.head_outputs(leaf, tokens[rows, 1:])
                loss = self.agreement_loss(outputs, leaf, self.model.embedding, TEMPERATURE) / len(starts)
                loss.backward()
                total += loss.item()
        return None, total

    def update(self) -> None:
        """Take a step of the optimisers at the present rate. Parameters without a gradient do not change."""
        for optimizer, peak in zip(self.optimizers, (MUON_RATE, ADAM_RATE), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = peak * self.progress.rate()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def fit_to_minutes(self, pace: float) -> None:
        """Plan fewer joint steps on a slow machine, until decay begins."""
        progress, minutes = self.progress, self.plan.minutes
        if minutes is None or progress.decaying or progress.step <= 2 * REPORT_EVERY:
            return  # the first steps hold the compilation and say nothing about the pace
        left = max(0.0, minutes * 60 - progress.seconds)
        shortest = int(progress.step / (1 - DECAY_SHARE)) + 1
        progress.steps = min(self.plan.steps, max(shortest, progress.step + int(left / pace)))

    def report(self, losses: tuple[float | None, float], paces: deque[float]) -> None:
        progress = self.progress
        loss = "frozen" if losses[0] is None else f"{losses[0]:.3f}"
        minutes_left = progress.left * sum(paces) / len(paces) / 60
        print(
            f"step {progress.step}/{progress.steps}+{progress.head_steps}  "
            f"loss {loss}  head {losses[1]:.3f}  rate {progress.rate():.2f}  "
            f"{paces[-1]:.2f} s/step  {progress.seconds / 60:.0f} min, about {minutes_left:.0f} left",
            flush=True,
        )
