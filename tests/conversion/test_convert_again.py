"""Converting what is converted already, and conversions whose config is wrong about them."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlxmtp.checkpoints import open_checkpoint
from mlxmtp.conversion.convert import Quantization, convert
from mlxmtp.errors import CheckpointError, HeadError, OptionError
from tests import tiny
from tests.comparing import assert_equal, head_of, trunk_of

Checkpoints = Callable[..., Path]
KINDS: tuple[tiny.Kind, ...] = ("qwen3_5", "qwen3_5_moe_text", "qwen3_next")


def change_config(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    tiny.write_json(folder / "config.json", config)


def weights_of(folder: Path) -> tuple[bytes, bytes]:
    return (folder / "model.safetensors").read_bytes(), (folder / "mtp.safetensors").read_bytes()


@pytest.mark.parametrize("packing", [None, Quantization(), Quantization("nvfp4")], ids=["whole", "affine", "nvfp4"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_second_conversion_changes_nothing(
    raw_checkpoint: Checkpoints, tmp_path: Path, kind: tiny.Kind, packing: Quantization | None
) -> None:
    once = convert(raw_checkpoint(kind), tmp_path / "once", quantization=packing).folder
    again = convert(once, tmp_path / "again").folder
    assert weights_of(again) == weights_of(once)
    first, second = (open_checkpoint(folder).config for folder in (once, again))
    assert second.pop("mtp_head") == first.pop("mtp_head") | {"source": "once"}
    assert second == first


def test_a_conversion_quantised_later_is_as_if_at_once(raw_checkpoint: Checkpoints, tmp_path: Path) -> None:
    raw = raw_checkpoint("qwen3_5_moe")
    later = convert(convert(raw, tmp_path / "whole").folder, tmp_path / "later", quantization=Quantization()).folder
    assert weights_of(later) == weights_of(convert(raw, tmp_path / "at once", quantization=Quantization()).folder)


@pytest.mark.parametrize("mode", ["affine", "mxfp4"])
def test_a_quantised_trunk_is_not_quantised_again(raw_checkpoint: Checkpoints, tmp_path: Path, mode: str) -> None:
    once = convert(raw_checkpoint("qwen3_5"), tmp_path / "once", quantization=Quantization(mode)).folder
    with pytest.raises(OptionError, match="is quantised already; convert from its original"):
        convert(once, tmp_path / "again", quantization=Quantization())
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_dtype_is_of_trunk_and_head_and_lasts(
    raw_checkpoint: Checkpoints, tmp_path: Path, kind: tiny.Kind, dtype: str
) -> None:
    raw = raw_checkpoint(kind)
    made = convert(raw, tmp_path / "made", dtype=dtype).folder
    for loaded, original in ((trunk_of(made), trunk_of(raw)), (head_of(made), head_of(raw))):
        # mlx-lm keeps Qwen3.5's decay rates (A_log) as they are stored
        cast = {n: w if n.endswith("A_log") and kind != "qwen3_next" else w.astype(getattr(mx, dtype))
                for n, w in original.items()}  # fmt: skip
        assert_equal(loaded, cast)
    assert weights_of(convert(made, tmp_path / "again").folder) == weights_of(made)


def lie(key: str, value: object) -> Callable[[dict[str, Any]], object]:
    return lambda config: config["mtp_head"].update({key: value})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lie("norms", "raw"), "said to be raw, but their median of 1.0"),
        (lie("quantization", {"mtp.fc": {"group_size": 64, "bits": 4, "mode": "affine"}}), r"fc\.weight is"),
        (lie("quantization", {"mtp.fc": {"group_size": 32, "bits": 8, "mode": "mxfp8"}}), r"fc\.scales is|biases"),
    ],
    ids=["norms", "bits", "mode"],
)
def test_facts_that_lie_are_found_out(
    raw_checkpoint: Checkpoints, tmp_path: Path, change: Callable[[dict[str, Any]], object], says: str
) -> None:
    made = convert(raw_checkpoint("qwen3_5"), tmp_path / "made", quantization=Quantization()).folder
    change_config(made, change)
    with pytest.raises(HeadError, match=says):
        head_of(made)
    with pytest.raises(HeadError, match=says):
        convert(made, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_facts_go_with_the_head(raw_checkpoint: Checkpoints, tmp_path: Path) -> None:
    made = convert(raw_checkpoint("qwen3_5"), tmp_path / "made").folder
    (made / "mtp.safetensors").unlink()
    again = convert(made, tmp_path / "again")
    assert again.no_head_because
    assert again.head_bytes == 0
    assert "mtp_head" not in open_checkpoint(again.folder).config


def test_a_quantised_model_without_its_quantization_entry_is_refused(
    raw_checkpoint: Checkpoints, tmp_path: Path
) -> None:
    made = convert(raw_checkpoint("qwen3_5"), tmp_path / "made", quantization=Quantization()).folder
    change_config(made, lambda config: [config.pop(key) for key in ("quantization", "quantization_config")])
    with pytest.raises(CheckpointError, match=re.escape(str(made))):
        trunk_of(made)
