"""Whatever mlx-lm builds and runs: loaded, decoded with its tokens, reused, rolled back or refused with the reason."""

from __future__ import annotations

import re
from pathlib import Path

import mlx.core as mx
import pytest

from mlxmtp.checkpoints import open_checkpoint
from mlxmtp.errors import CheckpointError
from mlxmtp.targets import load_target
from mlxmtp.targets.rollback import LayerRollback, ModelRows
from tests.grids import cases
from tests.targets.every_model import ALIKE, NOT_RUN, SIZES, STATES, model_types
from tests.targets.sweep import check_rollback, sweep, write_checkpoint
from tests.tiny import save_weights, write_json

TABLE = Path(__file__).parent.parent.parent / "docs" / "families.md"


ALONE = sorted({*model_types()} - {*ALIKE, *STATES})
"""Types with windows, latents, several caches a layer or attention of their own."""
FEW = {*ALIKE[::16], *[*STATES][:6], *ALONE[::3]}
"""The types of the default run. Each kind of cache is also in test_rollback.py and test_shared_pass.py."""


@pytest.mark.parametrize("others", cases([False, True], default=[False]))
def test_every_model_type_of_mlx_lm_runs_here(others: bool, tmp_path: Path) -> None:
    """Each comparison names the type that differs; the outcome is the table of docs/families.md."""
    kinds = {kind for kind in model_types() if (kind not in FEW) == others}
    seen = {row.kind: row[1:] for row in sweep(tmp_path, sorted(kinds))}
    table = TABLE.read_text().partition("## Every model type of mlx-lm")[2]
    rows = re.findall(r"^\| (`.+`) \| (.+) \| (.+) \| (.+) \| (.+) \|$", table, re.MULTILINE)
    told = {kind: tuple(cells) for kinds, *cells in rows for kind in kinds.strip("`").split("`, `")}
    assert told.keys() == {*model_types()}
    assert {kind: told[kind] for kind in kinds} == seen


def test_windows_read_by_attention_of_its_own_go_back_by_the_whole_model(tmp_path: Path) -> None:
    """A soft cap on scores has mlx-lm multiply keys and values itself, which knows nothing of a ring for each row."""
    kinds = ["sliding_attention", "full_attention"]
    for softcap, way in ((None, LayerRollback), (30.0, ModelRows)):
        own = {"num_hidden_layers": 2, "layer_types": kinds, "attn_logit_softcapping": softcap}
        write_checkpoint("gear", tmp_path / str(softcap), own)
        target = load_target(open_checkpoint(tmp_path / str(softcap)))
        assert type(target._rollback) is way
        assert check_rollback("gear", target).startswith("exact")


def test_what_mlx_lm_does_not_run_here_loads_or_is_refused_with_the_reason(tmp_path: Path) -> None:
    for kind in NOT_RUN.keys() - {"olmo"}:
        write_checkpoint(kind, tmp_path / kind)
        assert load_target(open_checkpoint(tmp_path / kind), lazy=True).reversible, kind
    for kind, reason in {"olmo": "needs a Python package that is not installed", "cache": "has no model type"}.items():
        folder = tmp_path / kind
        save_weights(folder, {"x": mx.zeros(1)}, made_by="mlx")
        write_json(folder / "config.json", SIZES | {"model_type": kind})
        with pytest.raises(CheckpointError, match=reason):
            load_target(open_checkpoint(folder))
