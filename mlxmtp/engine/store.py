"""What is kept of a model between runs: the keys of its files, and its guarantee.

A file's name is a hash of everything that its content depends on. A file that cannot be read is ignored.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlxmtp.checkpoints.tensors import file_names, weight_files
from mlxmtp.exactness.compare import OnPass
from mlxmtp.exactness.few_rows import available, few_row_matmul, fused_few_row_matmul
from mlxmtp.exactness.guarantee import Guarantee, Identity
from mlxmtp.exactness.probe import GPU_TOKENS, apply_guarantee, probe, still_holds
from mlxmtp.exactness.shared import share
from mlxmtp.exactness.store import cache_file, load_guarantee, save_guarantee
from mlxmtp.exactness.variants import Kernel
from mlxmtp.heads import Head, HeadSource
from mlxmtp.machine import switches, versions
from mlxmtp.targets import Target

KEY_FORMAT = 4
"""Part of every key; a new number makes all older files unused."""


def own_kernels() -> tuple[Kernel, ...]:
    """Return our kernels for this device, which strict identity uses where they give the same bits and are faster."""
    return (few_row_matmul, fused_few_row_matmul) if available() else ()


@dataclass(frozen=True)
class ModelFacts:
    """A loaded model, by what its saved files depend on.

    Weight files count by name, size and time of change: to hash gigabytes would cost more than it saves.

    Args:
        folder: of the checkpoint.
        head: None decodes plainly. head_source: where it comes from.
        draft_tokens: the only token ids that the head drafts; None: all.
    """

    folder: Path
    target: Target
    head: Head | None = None
    head_source: HeadSource | None = None
    draft_tokens: list[int] | None = None
    ranks: int = 1

    def target_key(self, **more: Any) -> str:
        """The key of what depends on the target alone: its files, and what computes them. `more`: further facts."""
        facts = {
            "format": KEY_FORMAT,
            "config": self.target.config,
            "files": file_facts(self.folder / name for name in weight_files(file_names(self.folder))),
            **more,
            **({"ranks": self.ranks} if self.ranks > 1 else {}),
            "versions": versions(),
            "device": str(mx.default_device()),
            "switches": switches(),
            "dtype": str(self.target.embed(mx.array([[0]])).dtype),
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]

    def model_key(self, **more: str) -> str:
        """The key of what also depends on the head: its files, and its convention."""
        source, head = self.head_source, self.head
        files = file_facts(source.files.files if source and source.files else ())
        return self.target_key(head=head and (head.family, repr(head.convention)), head_files=files, **more)

    def drafting_key(self) -> str:
        """The key of what also depends on the drafts: the tokens that the head may draft."""
        return self.model_key(draft_tokens=str(self.draft_tokens))


def file_facts(files: Iterable[Path]) -> list[tuple[str, int, int]]:
    """Return name, size and time of change of files."""
    return [(file.name, stat.st_size, stat.st_mtime_ns) for file in sorted(files) if (stat := file.stat())]


# -- the guarantee --------------------------------------------------------------------------------------------

NOT_MEASURED = Guarantee("distribution", GPU_TOKENS, 0, because="passes are not compared where ranks share them")
"""The guarantee with ranks."""


def guarantee_file(facts: ModelFacts, identity: Identity) -> Path:
    """The file of a guarantee, the same with a head and without."""
    return cache_file("identity", model=facts.target_key(), identity=identity)


def establish_guarantee(
    facts: ModelFacts, identity: Identity, text: list[int], on_pass: OnPass = lambda *_: None
) -> Guarantee:
    """Return what holds of the text under `identity`, and have the target compute in that way from now on.

    The guarantee of an earlier run is loaded. Otherwise it is measured, which takes as long as some hundred tokens,
    and saved.

    Args:
        text: token ids to measure on.
        on_pass: called with (done, total) passes while it is measured. An exception of it ends the measurement.
    """
    if facts.ranks > 1:
        return NOT_MEASURED
    file, kernels = guarantee_file(facts, identity), own_kernels()
    if saved := load_guarantee(file):
        apply_guarantee(facts.target, saved, kernels)
        if not saved.ways or still_holds(facts.target, text, saved, kernels):
            return saved
    measured = probe(facts.target, text, identity, kernels=kernels, on_pass=on_pass)
    save_guarantee(file, measured)
    return measured


def establish_sharing(
    facts: ModelFacts,
    identity: Identity,
    guarantee: Guarantee,
    text: list[int],
    num_sequences: int,
    apart: str | None,
    on_pass: OnPass = lambda *_: None,
) -> Guarantee:
    """Return a guarantee that also says what holds of passes over up to `num_sequences` sequences, and save it.

    What an earlier run found is taken over. One-row arithmetic is compared once more: its variants are of this process.

    Args:
        guarantee: the target's, by `establish_guarantee`.
        text, on_pass: as there.
        apart: as in `share`.
    """
    known = guarantee.num_sequences >= num_sequences and not guarantee.ways
    if known or (guarantee.num_sequences == 1 and guarantee.not_shared):
        return guarantee
    shared = share(facts.target, text, guarantee, num_sequences, apart, on_pass)
    if facts.ranks == 1:
        save_guarantee(guarantee_file(facts, identity), shared)
    return shared
