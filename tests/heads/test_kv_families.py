"""What single families of one layer have of their own: windows, rotation, tied matrices, biases, conventions."""

import json
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlxmtp import GenerationOptions, load
from mlxmtp.conversion.convert import convert
from mlxmtp.heads.families import family_of
from mlxmtp.heads.head import Convention
from tests.comparing import assert_equal, head_of
from tests.running import assert_plain, plain_run

Checkpoints = Callable[..., Path]
PROMPT = [20, 16, 13, 8, 9, 3, 4, 3, 6, 20, 16, 22]
ROWS = 12
SLIDING = {"mtp_layer_types": ("sliding_attention",), "mtp_sliding_windows": (4,)}
FULL = {"mtp_layer_types": ("full_attention",)}


def last_row(engine: Any, order: list[int]) -> mx.array:
    """Return the head's last output [H] over rows in an order; the last row stays the last."""
    hidden = mx.random.normal((1, ROWS, engine.target.text_model.args.hidden_size), key=mx.random.key(1))
    order = [*order, ROWS - 1]
    out: mx.array = engine.mtp(hidden[:, order], mx.array([PROMPT])[:, order], engine.mtp.make_cache([]))[0, -1]
    return out


def moved(engine: Any, row: int) -> bool:
    """Whether the last row sees a row, whose content is replaced by another's."""
    before = last_row(engine, [*range(ROWS - 1)])
    return float(mx.abs(last_row(engine, [*range(row), 10, *range(row + 1, ROWS - 1)]) - before).max()) > 1e-4


@pytest.mark.parametrize(
    ("kind", "config", "window"),
    [
        ("exaone_moe", {}, ROWS),
        ("exaone_moe", SLIDING, 4),
        ("exaone_moe", SLIDING | {"mtp_sliding_windows": None}, 8),
        ("mellum", {}, 8),
        ("mellum", FULL, ROWS),
    ],
    ids=str,
)
def test_a_head_sees_the_window_that_the_config_says(
    layer_checkpoint: Checkpoints, kind: str, config: dict[str, Any], window: int
) -> None:
    engine = load(layer_checkpoint(kind, **config))
    assert [moved(engine, row) for row in range(ROWS - 2)] == [row > ROWS - 1 - window for row in range(ROWS - 2)]
    assert_plain(engine, PROMPT, plain_run(engine, PROMPT, 12), 3)


@pytest.mark.parametrize(
    ("config", "rotates"),
    [({}, False), ({"layer_types": ("full_attention",) * 2}, True), (SLIDING | {"mtp_sliding_windows": (ROWS,)}, True)],
    ids=str,
)
def test_a_k_exaone_head_rotates_as_the_trunks_layers(
    layer_checkpoint: Checkpoints, config: dict[str, Any], rotates: bool
) -> None:
    """Without rotation, attention does not see the order of earlier rows."""
    engine = load(layer_checkpoint("exaone_moe", **config))
    order = [*range(ROWS - 1)]
    assert (float(mx.abs(last_row(engine, order[::-1]) - last_row(engine, order)).max()) > 1e-4) == rotates


def test_ernies_variants(layer_checkpoint: Checkpoints, tmp_path: Path) -> None:
    """The released ones tie the output matrix to the embedding; a config may give every matrix a bias."""
    tied = load(layer_checkpoint("ernie4_5_moe", tie_word_embeddings=True))
    assert tied.mtp.output is tied.target.embedding
    assert_plain(tied, PROMPT, plain_run(tied, PROMPT, 8), 2)
    raw = layer_checkpoint("ernie4_5_moe", use_bias=True)
    assert {"layers.0.eh_proj.bias", "layers.0.block.mlp.up_proj.bias"} < head_of(raw).keys()
    assert_equal(head_of(convert(raw, tmp_path / "mlx").folder), head_of(raw))


def test_mimos_conventions_change_drafts_and_no_token(layer_checkpoint: Checkpoints) -> None:
    """The makers' code feeds the hidden state before the norm, SGLang and FastMTP after it."""
    engine = load(layer_checkpoint("mimo"))
    assert engine.mtp
    assert engine.mtp.convention == Convention(fed="pre", recycled="post")
    plain, drafts = plain_run(engine, PROMPT, 8), []
    for convention in family_of("mimo").conventions:
        engine.mtp.convention = convention
        engine.target.hidden_at = engine.mtp.hidden_at
        assert_plain(engine, PROMPT, plain, 2)
        _, hidden = engine.target.forward(mx.array([PROMPT]), engine.target.make_cache())
        cache = engine.mtp.make_cache([])
        states = engine.mtp(hidden[:, :-1], mx.array([PROMPT[1:]]), cache)
        states = engine.mtp(engine.mtp.next_hidden(states[:, -1:]), mx.array([[5]]), cache)
        drafts.append(engine.mtp.logits(states))
    others = [float(mx.abs(one - other).max()) for one, other in combinations(drafts, 2)]
    assert len(others) == 6
    assert min(others) > 0.01


def test_fastmtps_draft_vocabulary_is_a_file_of_ids(layer_checkpoint: Checkpoints, tmp_path: Path) -> None:
    """Its recursion is the head's own; its frequent tokens restrict drafts, and no text."""
    folder, ids = layer_checkpoint("mimo"), [3, 4, 6, 9, 13, 16, 20]
    (tmp_path / "frequent.json").write_text(json.dumps(ids))
    engine = load(folder, draft_vocab=tmp_path / "frequent.json")
    assert engine.mtp
    hidden = mx.random.normal((1, 3, 64), key=mx.random.key(1))
    logits = engine.mtp.logits(engine.mtp(hidden, mx.array([[3, 9, 4]]), engine.mtp.make_cache([])))
    assert {*ids} <= {i for i, drafted in enumerate(mx.isfinite(logits[0, 0]).tolist()) if drafted} <= {0, 1, 2, *ids}
    options = GenerationOptions(max_tokens=16, depth=3)
    assert engine.generate(PROMPT, options, raw=True).tokens == load(folder).generate(PROMPT, options, raw=True).tokens
