"""Compares the parts of a tiny model of every type with the whole model; run as each of two ranks, rank 0 prints JSON.

python -m tests.ranks.every_type RANK FOLDER SETUP
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

PROMPT = [(7 * i) % 90 + 3 for i in range(20)]
NEXT = [5, 6, 7, 8]
KEPT = 2
"""Tokens of the pass over several that its commit keeps."""


def outputs(target: Any) -> tuple[Any, Any, Any]:
    """Return the logits of NEXT token by token, in one pass, and of the token after the kept ones."""
    import mlx.core as mx

    def opened(tokens: list[int], cache: Any, kept: int) -> Any:
        rows = target.open(mx.array([tokens]), cache)
        rows.commit(kept)
        return rows.logits[0]

    caches = [target.make_cache() for _ in range(2)]
    for cache in caches:
        target.forward(mx.array([PROMPT]), cache)
    alone = mx.concatenate([opened([token], caches[0], 1) for token in NEXT])
    together = opened(NEXT, caches[1], KEPT if target.reversible else len(NEXT))
    after = opened([NEXT[KEPT]], caches[1], 1)
    mx.eval(alone, together, after)
    return alone, together, after


def compare(kind: str, folder: Path, group: Any) -> dict[str, Any]:
    """Return what one type's part gives: "refused", or the largest difference and whether passes have the same bits."""
    import mlx.core as mx

    from mlxmtp.checkpoints import open_checkpoint
    from mlxmtp.errors import CheckpointError
    from mlxmtp.targets import load_target
    from tests.targets.sweep import write_checkpoint

    write_checkpoint(kind, folder)
    checkpoint = open_checkpoint(str(folder))
    try:
        part = load_target(checkpoint, group=group)
    except CheckpointError as error:
        return {"refused": str(error)}
    found, expected = outputs(part), outputs(load_target(checkpoint))
    alone, together, after = found
    difference = max(float(mx.abs(one - other).max()) for one, other in zip(found, expected, strict=True))
    same = bool(mx.array_equal(alone, together)) and bool(mx.array_equal(after[0], alone[KEPT]))
    return {"difference": difference, "reversible": part.reversible, "same": same}


def main(rank: str, folder: str, setup: str) -> None:
    from mlxmtp.ranks.join import connect

    group = connect(int(rank), "ring", *json.loads(setup))
    from tests.targets.every_model import NOT_RUN, model_types

    kinds = [kind for kind in model_types() if kind not in NOT_RUN]
    found = {kind: compare(kind, Path(folder) / rank / kind, group) for kind in kinds}
    if rank == "0":
        sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
