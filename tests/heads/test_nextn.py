"""GLM's and DeepSeek's `nextn` layer: greedy identity, shared matrices, and the same head however it is stored."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlxmtp import load
from mlxmtp.conversion.attach import attach
from mlxmtp.conversion.convert import Packing, convert
from mlxmtp.conversion.inspect import inspect
from tests import tiny
from tests.comparing import assert_equal, head_of
from tests.running import generated, reference

Checkpoints = Callable[..., Path]
PROMPT = [5, 9, 20, 7, 11, 6, 13, 21, 8, 19, 17, 4]


@pytest.fixture(scope="module")
def nextn(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    """`tiny.nextn_checkpoint` without its folder: written once for each set of options; read only."""
    made: dict[str, Path] = {}

    def make(kind: tiny.NextNKind, **options: Any) -> Path:
        key = f"{kind} {sorted(options.items())}"
        if key not in made:
            made[key] = tiny.nextn_checkpoint(tmp_path_factory.mktemp(kind), kind, **options)
        return made[key]

    return make


@pytest.mark.parametrize("kind", tiny.NEXTN_KINDS)
def test_greedy_tokens_are_those_of_mlx_lm(nextn: Checkpoints, kind: tiny.NextNKind) -> None:
    engine = load(nextn(kind, vocab=24))
    expected = reference(engine, PROMPT, 200)
    assert engine.mtp is not None
    for depth in range(5):
        assert generated(engine, PROMPT, 200, depth) == expected, depth


@pytest.mark.parametrize("kind", tiny.NEXTN_KINDS)
def test_copies_of_the_trunks_matrices_are_shared_and_others_kept(nextn: Checkpoints, kind: tiny.NextNKind) -> None:
    shared, absent = head_of(nextn(kind)), head_of(nextn(kind, own="none"))
    assert_equal(shared, absent)
    others = head_of(nextn(kind, own="other"))
    assert others.keys() - shared.keys() == {"layers.0.embed_tokens.weight", "layers.0.lm_head.weight"}


@pytest.mark.parametrize("kind", tiny.NEXTN_KINDS)
def test_the_head_is_the_same_converted_attached_and_read_back(
    nextn: Checkpoints, tmp_path: Path, kind: tiny.NextNKind
) -> None:
    raw = nextn(kind)
    converted = convert(raw, tmp_path / "mlx").folder
    assert_equal(head_of(converted), head_of(raw))
    stripped = convert(nextn(kind, head=False), tmp_path / "stripped").folder
    attach(stripped, str(raw))
    assert_equal(head_of(stripped), head_of(raw))
    report = inspect(stripped)
    assert report.speculates
    assert report.head is not None
    assert (report.head.family, report.head.layers, report.head.norms) == ("nextn", 1, "plain")
    tokens = load(raw).generate(PROMPT, max_tokens=40).tokens
    assert load(converted).generate(PROMPT, max_tokens=40).tokens == tokens


@pytest.mark.parametrize("kind", tiny.NEXTN_KINDS)
def test_a_quantised_trunk_still_shares_its_matrices(nextn: Checkpoints, tmp_path: Path, kind: tiny.NextNKind) -> None:
    raw = nextn(kind)
    converted = convert(raw, tmp_path / "whole", packing=Packing(bits=4, group_size=32)).folder
    assert not any("lm_head" in name or "embed_tokens" in name for name in head_of(converted))
    engine = load(converted)
    expected = reference(engine, PROMPT, 60)
    assert all(generated(engine, PROMPT, 60, depth) == expected for depth in (1, 3))
