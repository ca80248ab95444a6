"""What `inspect` makes of every layout: the head and its place, formats, sizes, and what generate will do."""

import json
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import mlx.core as mx
import pytest

from mlxmtp import load
from mlxmtp.conversion.inspect import inspect
from mlxmtp.conversion.reports import CheckpointReport
from mlxmtp.errors import CheckpointError
from tests import tiny
from tests.hub import Hub

Checkpoints = Callable[..., Path]

HF, MLX = "Hugging Face", "MLX"
PACKED4, PACKED8 = "4-bit affine, groups of 64", "8-bit affine, groups of 64"
FP8 = "FP8, blocks of 128 x 128"


def told(report: CheckpointReport) -> tuple[object, ...]:
    """Layout; dtype and packing of the trunk; place, norms, dtype and packing of the head."""
    head, trunk = report.head, report.trunk
    ours = (head.place, head.norms, head.weights.dtype, head.weights.quantization) if head else None
    return report.format, (trunk.dtype, trunk.quantization), ours


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_raw_checkpoints(raw_checkpoint: Checkpoints, kind: tiny.Kind) -> None:
    dtype = "float32" if tiny.is_moe(kind) else "bfloat16"
    folder = raw_checkpoint(kind, dtype=dtype, shards=2)
    report, short = inspect(folder), "F32" if dtype == "float32" else "BF16"
    assert told(report) == (HF, (short, None), ("shards", "raw", short, None))
    assert (report.model_type, report.support) == (kind, "speculates")
    assert (report.layers, report.hidden_size, report.vocab_size, report.context) == (4, 64, 288, 4096)
    assert report.experts == (4 if tiny.is_moe(kind) else None)
    assert report.head is not None
    assert (report.head.family, report.head.layers, len(report.trunk.files)) == ("qwen-mtp", 1, 2)
    total = sum(value.nbytes for value in tiny.load_weights(folder).values())
    assert report.trunk.nbytes + report.head.weights.nbytes == total


@pytest.mark.parametrize(
    ("options", "trunk", "head"),
    [
        ({}, ("BF16", None), ("shards", "shifted", "BF16", None)),
        ({"head_norms": "raw"}, ("BF16", None), ("shards", "raw", "BF16", None)),
        ({"bits": 4}, ("BF16", PACKED4), ("shards", "shifted", "BF16", None)),
        ({"bits": 4, "head_bits": 8}, ("BF16", PACKED4), ("shards", "shifted", "BF16", PACKED8)),
        ({"bits": 8, "head": "sidecar"}, ("BF16", PACKED8), ("side-car", "shifted", "BF16", None)),
        ({"bits": 4, "head": "none"}, ("BF16", PACKED4), None),
    ],
)
def test_mlx_conversions(
    raw_checkpoint: Checkpoints, mlx_conversion: Checkpoints, options: dict, trunk: tuple, head: tuple | None
) -> None:
    report = inspect(mlx_conversion(raw_checkpoint("qwen3_5"), **options))
    assert told(report) == (MLX, trunk, head)
    assert report.support == ("speculates" if head else "plain")


def test_routers_that_are_packed_otherwise(raw_checkpoint: Checkpoints, mlx_conversion: Checkpoints) -> None:
    report = inspect(mlx_conversion(raw_checkpoint("qwen3_5_moe", dtype="float32"), bits=4, head="none"))
    assert report.trunk.quantization == f"{PACKED4}; 8 of 53 matrices {PACKED8}"


def test_bits_that_the_config_leaves_out_are_told_by_the_shapes(
    raw_checkpoint: Checkpoints, mlx_conversion: Checkpoints, tmp_path: Path
) -> None:
    source = mlx_conversion(raw_checkpoint("qwen3_5"), bits=4, head_bits=8)
    folder = Path(shutil.copytree(source, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    config["quantization"] = {"bits": 4, "group_size": 64}
    tiny.write_json(folder / "config.json", config)
    assert told(inspect(folder)) == told(inspect(source))


@pytest.mark.parametrize(("trunk", "head"), [(True, True), (True, False)])
def test_fp8(raw_checkpoint: Checkpoints, tmp_path: Path, trunk: bool, head: bool) -> None:
    folder, _ = tiny.fp8_twins(raw_checkpoint("qwen3_5"), tmp_path, trunk=trunk, head=head)
    found = ("shards", "raw", "BF16", FP8 if head else None)
    assert told(inspect(folder)) == (HF, ("BF16", FP8), found)


def test_a_drafter(raw_checkpoint: Checkpoints, tmp_path: Path) -> None:
    report = inspect(tiny.drafter(raw_checkpoint("qwen3_5"), tmp_path / "drafter", mode="affine-4"))
    assert told(report) == ("mlx-vlm drafter", (None, None), ("drafter", "shifted", "BF16", PACKED4))
    assert (report.support, report.trunk.nbytes, report.trunk.files) == ("refused", 0, [])
    assert f"`mlxmtp attach MODEL --from {tmp_path}/drafter`" in report.because


def test_a_model_of_another_family(raw_checkpoint: Checkpoints, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    tiny.save_weights(folder, {"model.embed_tokens.weight": mx.zeros((8, 4), mx.float16)}, made_by="pt")
    tiny.write_json(folder / "config.json", {"model_type": "llama", "quantization_config": {"quant_method": "gptq"}})
    tiny.tokenizer(folder, 288)
    report = inspect(folder)
    assert told(report) == (None, ("F16", "gptq"), None)
    assert (report.support, report.layers, report.context) == ("plain", None, None)
    assert report.because == "no MTP head family for model type 'llama' yet"


def dspark(folder: Path) -> None:
    weights = tiny.load_weights(folder)
    weights["mtp.0.main_proj.weight"] = weights.pop("mtp.fc.weight")
    mx.eval(weights)
    tiny.save_weights(folder, weights, made_by="pt")


def without_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def unknown_type(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    tiny.write_json(folder / "config.json", config | {"model_type": "crystal_ball"})


@pytest.mark.parametrize(
    ("damage", "because"), [(dspark, "DSpark"), (without_tokenizer, "no tokenizer"), (unknown_type, "'crystal_ball'")]
)
def test_what_generate_refuses(
    raw_checkpoint: Checkpoints, tmp_path: Path, damage: Callable[[Path], None], because: str
) -> None:
    folder = Path(shutil.copytree(raw_checkpoint("qwen3_5"), tmp_path / "model"))
    whole = inspect(folder)
    damage(folder)
    report = inspect(folder)
    assert report.support == "refused"
    assert because in report.because
    with pytest.raises(CheckpointError) as refused:
        load(folder)
    assert str(refused.value).startswith(report.because)
    assert report.head is not None
    assert whole.head is not None
    assert (report.head.family, report.trunk, report.head.weights) == (
        "qwen-mtp" if damage is without_tokenizer else None,
        whole.trunk,
        whole.head.weights,
    )


@pytest.mark.parametrize(
    ("kind", "known"), [("qwen3_5", "the config declares one"), ("qwen3_next", "the original has one")]
)
def test_a_lost_head_names_what_fetches_it(raw_checkpoint: Checkpoints, tmp_path: Path, kind: str, known: str) -> None:
    folder = Path(shutil.copytree(raw_checkpoint(kind, head=False, dtype="float32"), tmp_path / "a model"))
    assert known in inspect(folder).because
    assert f"`mlxmtp attach '{folder}' --from ORIGINAL`" in inspect(folder).because
    (folder / "README.md").write_text("---\nlicense: mit\nbase_model:\n- maker/original\n---\n")
    assert f"`mlxmtp attach '{folder}' --from maker/original`" in inspect(folder).because


def test_a_repo_is_described_from_its_headers_alone(
    hub: Hub, raw_checkpoint: Checkpoints, mlx_conversion: Checkpoints
) -> None:
    raw = raw_checkpoint("qwen3_5", shards=3)
    folders = {"maker/raw": raw, "community/packed": mlx_conversion(raw, bits=4, head="sidecar", shards=2)}
    for name, folder in folders.items():
        hub.add(name, folder)
        report, local = inspect(name), inspect(folder)
        assert report.revision == hub.repos[name].main
        expected = replace(local, name=name, where="hub", revision=report.revision)
        if name == "community/packed":  # only the values tell
            assert expected.head is not None
            expected = replace(expected, head=replace(expected.head, norms=None))
        assert report == expected

        headers = {
            file.name: 8 + struct.unpack("<Q", file.read_bytes()[:8])[0] for file in folder.glob("*.safetensors")
        }
        texts = sum(file.stat().st_size for file in (*folder.glob("config.json"), *folder.glob("*.index.json")))
        assert hub.sent(name) == texts + sum(headers.values())
        asked = [request for request in hub.requests if request.path.startswith("/cdn/") and request.repo == name]
        assert len(asked) == 2 * len(headers)
        for request in asked:
            assert request.range is not None
            assert int(request.range.partition("-")[2]) < headers[request.path.rpartition("/")[2]]
    assert not Path(huggingface_hub.constants.HF_HUB_CACHE).exists()


def test_a_stripped_repo_names_its_original(
    hub: Hub, raw_checkpoint: Checkpoints, mlx_conversion: Checkpoints, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(mlx_conversion(raw_checkpoint("qwen3_5"), head="none"), tmp_path / "stripped"))
    (folder / "README.md").write_text("---\nbase_model: maker/original\n---\n")
    hub.add("community/stripped", folder)
    report = inspect("community/stripped")
    assert (report.where, report.support, report.head) == ("hub", "plain", None)
    assert "`mlxmtp attach community/stripped --from maker/original`" in report.because
