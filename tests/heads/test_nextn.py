"""GLM's and DeepSeek's `nextn` layer: greedy identity, shared matrices, and the same head however it is stored."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest

from mlxmtp import GenerationOptions, load
from mlxmtp.conversion.attach import attach
from mlxmtp.conversion.convert import Quantization, convert
from mlxmtp.conversion.inspect import inspect
from mlxmtp.errors import CheckpointError, HeadError
from mlxmtp.targets import why_not_shared
from tests import tiny
from tests.comparing import assert_equal, head_of
from tests.grids import cases, grid
from tests.running import assert_plain, plain_run, prefilled, rounds
from tests.scripted import assert_same_state, snapshot

Checkpoints = Callable[..., Path]
PREFILL_ROWS = 64
SHARED_INDEXERS: dict[str, Any] = {
    "vocab": 24, "layers": 4, "dense": 2, "indexers": "FFSS", "index_heads": 8, "index_topk": 4,
}  # fmt: skip
PROMPT = [20, 16, 13, 8, 9, 3, 4, 3, 6, 20, 16, 22]  # none of the kinds soon says one token over and over


@pytest.mark.parametrize("kind", cases(tiny.NEXTN_KINDS, default=("glm4_moe", "glm_moe_dsa")))
def test_greedy_tokens_are_those_of_mlx_lm(nextn_checkpoint: Checkpoints, kind: tiny.NextNKind) -> None:
    engine = load(nextn_checkpoint(kind, vocab=24))
    prompt = np.random.default_rng(3).integers(3, 24, 12).tolist()  # the random heads are right within a few tokens
    plain = plain_run(engine, prompt, 24)
    assert len(set(plain[0])) > 5, "a collapsed reference would prove little"
    for depth in (1, 4):
        run = assert_plain(engine, prompt, plain, depth)
        assert any(one.accepted for one in run), "the head is not at work"


@pytest.mark.parametrize(
    ("kind", "bits"),
    cases(
        [("glm4_moe", 4), ("glm4_moe_lite", 8), ("deepseek_v3", 4), ("deepseek_v32", 4), ("glm_moe_dsa", 8)],
        default=[("deepseek_v32", 4)],
    ),
)
def test_greedy_tokens_in_bfloat16_are_those_of_mlx_lm(
    nextn_conversion: Checkpoints, kind: tiny.NextNKind, bits: int
) -> None:
    """Sparse attention adds up more than two heads to choose its keys, where half precision shows the order."""
    engine = load(nextn_conversion(kind, bits=bits, vocab=24, dtype="bfloat16", index_heads=16))
    plain = plain_run(engine, PROMPT, 32)
    assert len(set(plain[0])) > 5, "a collapsed reference would prove little"
    assert_plain(engine, PROMPT, plain, 4)


def test_layers_that_share_an_indexer(nextn_checkpoint: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row attends to the keys that its own row of the layer before chose: in passes over several, of several
    sequences, and after a pass that was broken off.
    """
    engine = load(nextn_checkpoint("glm_moe_dsa", **SHARED_INDEXERS))
    target = engine.target
    plain = plain_run(engine, PROMPT, 24)
    assert len(set(plain[0])) > 5, "a collapsed reference would prove little"
    run = assert_plain(engine, PROMPT, plain, 4)
    assert any(one.accepted for one in run), "the head is not at work"
    assert why_not_shared(target) is None
    tokens = mx.array([PROMPT])
    expected, _ = target.forward(tokens, target.make_cache())
    with monkeypatch.context() as broken:
        broken.setattr(target.text_model.layers[2], "mlp", None)
        with pytest.raises(TypeError):
            target.forward(tokens[:, ::-1], target.make_cache())
    assert mx.array_equal(target.forward(tokens, target.make_cache())[0], expected)


def test_other_types_of_indexers_are_refused(tmp_path: Path) -> None:
    folder = tiny.nextn_checkpoint(tmp_path / "model", "glm_moe_dsa", **SHARED_INDEXERS)
    config = json.loads((folder / "config.json").read_text())
    for types in ("FFSS", ["full"], ["shared"] * 4, ["full", "full", "shared", ["shared"]]):
        tiny.write_json(folder / "config.json", config | {"indexer_types": types})
        with pytest.raises(CheckpointError, match=r'config has indexer_types .*; expected "full" or "shared" for each'):
            load(folder)


@pytest.mark.parametrize(
    ("kind", "length"),
    grid(
        tiny.NEXTN_KINDS,
        [1, 2, 65, 66, 250],
        default=lambda kind, length: length in {"deepseek_v32": (1, 250), "glm4_moe": (65,)}.get(kind, ()),
    ),
)
def test_prompts_across_chunk_borders(nextn_checkpoint: Checkpoints, kind: tiny.NextNKind, length: int) -> None:
    """The longest makes its caches grow, which have room for 256 rows more each time, and so do the passes after it."""
    engine = load(nextn_checkpoint(kind, vocab=24, index_heads=8))
    prompt = np.random.default_rng(length).integers(3, 24, length).tolist()
    expected, read = plain_run(engine, prompt, 16, PREFILL_ROWS)
    if length == 250:
        assert_plain(engine, prompt, (expected, read), 0, PREFILL_ROWS)
    chunked, whole = (prefilled(engine, prompt, 1, rows) for rows in (PREFILL_ROWS, 2048))
    assert_same_state(snapshot(chunked.head_cache), snapshot(whole.head_cache))
    if length > 1:
        hidden, expected_hidden = (mx.concatenate(sequence._pending, axis=1) for sequence in (chunked, whole))
        # a last chunk of one row is read in that row's order of products, where attention is latent
        alone = length % PREFILL_ROWS == 2 and kind != "glm4_moe"
        assert float(mx.abs(hidden - expected_hidden).max()) <= (1e-5 if alone else 0)
    for sequence, depth in ((chunked, 2 + length % 3), (whole, 3)):
        run = rounds(engine, sequence, 17, depth)
        assert [token for one in run for token in one.tokens][:-1] == expected, depth
    assert_same_state(snapshot(chunked.cache), snapshot(read))


@pytest.mark.parametrize("kind", tiny.NEXTN_KINDS)
def test_copies_of_the_trunks_matrices_are_shared_and_others_kept(
    nextn_checkpoint: Checkpoints, kind: tiny.NextNKind
) -> None:
    shared, absent = head_of(nextn_checkpoint(kind)), head_of(nextn_checkpoint(kind, own="none"))
    assert_equal(shared, absent)
    others = head_of(nextn_checkpoint(kind, own="other"))
    assert others.keys() - shared.keys() == {"layers.0.embed_tokens.weight", "layers.0.lm_head.weight"}


@pytest.mark.parametrize("kind", cases(tiny.NEXTN_KINDS, default=("glm4_moe", "deepseek_v3")))
def test_the_head_is_the_same_converted_attached_and_read_back(
    nextn_checkpoint: Checkpoints, tmp_path: Path, kind: tiny.NextNKind
) -> None:
    raw = nextn_checkpoint(kind)
    converted = convert(raw, tmp_path / "mlx").folder
    assert_equal(head_of(converted), head_of(raw))
    stripped = convert(nextn_checkpoint(kind, head=False), tmp_path / "stripped").folder
    attach(stripped, str(raw))
    assert_equal(head_of(stripped), head_of(raw))
    report = inspect(stripped)
    assert report.speculates
    assert report.head is not None
    assert (report.head.family, report.head.layers, report.head.norms) == ("nextn", 1, "plain")
    tokens = load(raw).generate(PROMPT, GenerationOptions(max_tokens=8)).tokens
    assert load(converted).generate(PROMPT, GenerationOptions(max_tokens=8)).tokens == tokens


@pytest.mark.parametrize("kind", cases(tiny.NEXTN_KINDS, default=("deepseek_v3",)))
def test_a_quantised_trunk_still_shares_its_matrices(
    nextn_checkpoint: Checkpoints, tmp_path: Path, kind: tiny.NextNKind
) -> None:
    raw = nextn_checkpoint(kind)
    converted = convert(raw, tmp_path / "whole", quantization=Quantization(bits=4, group_size=32)).folder
    assert not any("lm_head" in name or "embed_tokens" in name for name in head_of(converted))
    engine = load(converted)
    assert_plain(engine, PROMPT, plain_run(engine, PROMPT, 16), 3)


@pytest.mark.parametrize(("layers", "model_type"), [(3, "deepseek_v3"), (5, "joyai_llm_flash")])
def test_deepseek_v3_of_any_depth_loads_raw(tmp_path: Path, layers: int, model_type: str) -> None:
    """mlx-lm drops layer 61 by its number, and finds the head of any other model in its way."""
    raw = tiny.nextn_checkpoint(tmp_path / "model", "deepseek_v3", layers=layers)
    config = json.loads((raw / "config.json").read_text())
    tiny.write_json(raw / "config.json", config | {"model_type": model_type})
    with pytest.raises(ValueError, match="parameters not in model"):
        mlx_lm.utils.load_model(raw)
    assert load(raw).mtp is not None


def test_a_head_of_two_layers_is_refused(tmp_path: Path) -> None:
    folder = tiny.nextn_checkpoint(tmp_path / "model", "glm4_moe")
    weights = tiny.load_weights(folder)
    second = {name.replace("layers.3.", "layers.4."): w for name, w in weights.items() if ".layers.3." in name}
    tiny.save_weights(folder, weights | second, made_by="pt")
    with pytest.raises(HeadError, match="has 2 MTP layers"):
        load(folder)
