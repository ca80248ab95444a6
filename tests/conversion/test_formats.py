"""One checkpoint in every head format that is read: the same trunk, the same head, the same tokens and drafts."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import pytest

from mlxmtp.checkpoints import open_checkpoint
from mlxmtp.conversion.attach import attach
from mlxmtp.conversion.convert import Quantization, convert
from tests import tiny
from tests.comparing import Turn, assert_equal, assert_exact, head_of, trunk_of, turn, unpacked_head_of
from tests.grids import cases, grid

pytestmark = pytest.mark.exhaustive

Checkpoints = Callable[..., Path]
VOCAB = 16  # few enough tokens that a random head is right now and then
# On the CPU backend, gather_mm knows experts in float32 only.
DTYPES: dict[tiny.Kind, str] = {"qwen3_5": "bfloat16", "qwen3_5_moe": "float32", "qwen3_next": "float32"}


@dataclass(frozen=True)
class Original:
    """A raw checkpoint, and the turn that it generates."""

    kind: tiny.Kind
    folder: Path
    turn: Turn


Form = Callable[[Original, Path], Path]


@pytest.fixture(scope="module", params=DTYPES)
def original(request: pytest.FixtureRequest, raw_checkpoint: Checkpoints) -> Original:
    folder = raw_checkpoint(request.param, dtype=DTYPES[request.param], vocab=VOCAB)
    return Original(request.param, folder, turn(folder))


def side_car_of(folder: Path) -> dict[str, mx.array]:
    return dict(mx.load(str(folder / "mtp.safetensors")))


def raw(head_experts: tiny.Experts) -> Form:
    def write(one: Original, dest: Path) -> Path:
        options = {"dtype": DTYPES[one.kind], "vocab": VOCAB, "shards": 3}
        return tiny.raw_checkpoint(dest, one.kind, head_experts=head_experts, **options)

    return write


def in_shards(norms: str) -> Form:
    return lambda one, dest: tiny.mlx_conversion(one.folder, dest, head="shards", head_norms=norms, shards=3)


def side_car(name: str, prefix: str = "mtp.") -> Form:
    def write(one: Original, dest: Path) -> Path:
        made = tiny.mlx_conversion(one.folder, dest, head="sidecar")
        head = {prefix + tensor.removeprefix("mtp."): value for tensor, value in side_car_of(made).items()}
        mx.eval(head)
        (made / "mtp.safetensors").unlink()
        (made / name).parent.mkdir(exist_ok=True)
        mx.save_safetensors(str(made / name), head)
        return made

    return write


def attached(one: Original, dest: Path) -> Path:
    attach(tiny.mlx_conversion(one.folder, dest, head="none"), str(one.folder))
    return dest


FORMS: dict[str, Form] = {
    "raw, fused experts": raw("fused"),
    "raw, an expert at a time": raw("per_expert"),
    "MLX shards": in_shards("shifted"),
    "MLX shards, raw norms": in_shards("raw"),
    "mtp.safetensors": side_car("mtp.safetensors"),
    "mtp/weights.safetensors": side_car("mtp/weights.safetensors"),
    "model-mtp.safetensors": side_car("model-mtp.safetensors"),
    "model-mtp.safetensors, no prefix": side_car("model-mtp.safetensors", ""),
    "converted": lambda one, dest: convert(one.folder, dest).folder,
    "attached": attached,
}


CORNERS = {
    "qwen3_5": (
        "raw, fused experts",
        "MLX shards",
        "mtp/weights.safetensors",
        "model-mtp.safetensors, no prefix",
        "attached",
    ),
    "qwen3_5_moe": ("raw, an expert at a time",),
    "qwen3_next": ("MLX shards, raw norms",),
}
"""The forms that run by default: each way to store a head once."""


@pytest.mark.parametrize(
    ("original", "form"),
    grid(DTYPES, FORMS, default=lambda kind, form: form in CORNERS[kind]),
    indirect=["original"],
)
def test_every_format_is_the_same_model(original: Original, tmp_path: Path, form: str) -> None:
    folder = FORMS[form](original, tmp_path / "model")
    assert_equal(trunk_of(folder), trunk_of(original.folder))
    assert_equal(head_of(folder), head_of(original.folder))
    assert turn(folder) == original.turn


def test_the_turn_is_exact(original: Original) -> None:
    assert_exact(original.folder)


def test_drafts_stand_that_only_this_head_makes(raw_checkpoint: Checkpoints, tmp_path: Path) -> None:
    """Guards the comparisons of turns: tokens are the trunk's, but which drafts stand depends on the head."""
    folder = raw_checkpoint("qwen3_5", vocab=VOCAB)
    weights = tiny.load_weights(folder)
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    tiny.save_weights(other, weights | {"mtp.fc.weight": -weights["mtp.fc.weight"]}, made_by="pt")
    assert turn(folder)[2] > 0
    assert turn(folder)[0] == turn(other)[0]
    assert turn(folder) != turn(other)


# -- drafters of mlx-vlm


@pytest.mark.parametrize(
    ("kind", "text_config"),
    grid(DTYPES, [True, False], default=lambda kind, text_config: text_config == (kind != "qwen3_5")),
)
def test_a_drafter_is_the_head_of_its_original(
    raw_checkpoint: Checkpoints, tmp_path: Path, kind: tiny.Kind, text_config: bool
) -> None:
    folder = raw_checkpoint(kind, dtype=DTYPES[kind], vocab=VOCAB)
    trunk = tiny.mlx_conversion(folder, tmp_path / "trunk", head="none")
    attach(trunk, str(tiny.drafter(folder, tmp_path / "drafter", text_config=text_config)))
    assert_equal(head_of(trunk), head_of(folder))
    assert turn(trunk) == turn(folder)


@pytest.mark.parametrize(
    ("kind", "mode"),  # of `--mtp --bits 4`, and of an FP8 original
    grid(
        DTYPES,
        ["affine-4", "mxfp8"],
        default=lambda kind, mode: (kind, mode) in (("qwen3_5", "affine-4"), ("qwen3_5_moe", "mxfp8")),
    ),
)
def test_a_packed_drafter_stays_packed(
    raw_checkpoint: Checkpoints, mlx_conversion: Checkpoints, tmp_path: Path, kind: tiny.Kind, mode: str
) -> None:
    folder = raw_checkpoint(kind, vocab=VOCAB)
    trunk = tiny.mlx_conversion(folder, tmp_path / "trunk", bits=4, head="none")
    attach(trunk, str(tiny.drafter(folder, tmp_path / "drafter", mode=mode)))
    packed, _ = tiny.pack(side_car_of(mlx_conversion(folder, head="sidecar")), mode, kept=("mlp.gate",))
    assert_equal(side_car_of(trunk), packed)
    assert_exact(trunk)


# -- packed heads


def with_head(trunk: Path, dest: Path, head: dict[str, mx.array]) -> Path:
    shutil.copytree(trunk, dest)
    mx.save_safetensors(str(dest / "mtp.safetensors"), head)
    return dest


def with_config(folder: Path, **entries: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    tiny.write_json(folder / "config.json", config | entries)


def by_layer(packed: dict[str, mx.array], mode: str, prefix: str = "") -> dict[str, object]:
    paths = [name.removesuffix(".scales") for name in packed if name.endswith(".scales")]
    return {prefix + path: tiny.MODES[mode] for path in paths}


@pytest.mark.parametrize(
    ("kind", "mode"),
    grid(
        ["qwen3_5", "qwen3_5_moe"],
        tiny.MODES,
        default=lambda kind, mode: mode == "mxfp8" if kind == "qwen3_5_moe" else mode in ("affine-3", "nvfp4"),
    ),
)
def test_a_packed_side_car_is_its_dequantised_numbers(
    raw_checkpoint: Checkpoints, mlx_conversion: Checkpoints, tmp_path: Path, kind: tiny.Kind, mode: str
) -> None:
    trunk = mlx_conversion(raw_checkpoint(kind, dtype=DTYPES[kind], vocab=VOCAB), head="sidecar")
    packed, numbers = tiny.pack(side_car_of(trunk), mode)
    folder = with_head(trunk, tmp_path / "packed", packed)
    expected = head_of(with_head(trunk, tmp_path / "numbers", numbers))
    assert_equal(unpacked_head_of(folder), expected)
    assert_exact(folder)
    with_config(folder, mtp_head={"norms": "shifted", "quantization": by_layer(packed, mode)})
    assert_equal(unpacked_head_of(folder), expected)


@pytest.mark.parametrize("mode", cases(tiny.MODES, default=["affine-8", "mxfp4"]))
def test_a_packed_head_in_the_shards_of_a_packed_trunk(
    raw_checkpoint: Checkpoints, mlx_conversion: Checkpoints, tmp_path: Path, mode: str
) -> None:
    """Packed otherwise than the trunk, with an entry for each layer in the config, or with the trunk's alone."""
    folder = raw_checkpoint("qwen3_5", vocab=VOCAB)
    packed, numbers = tiny.pack(side_car_of(mlx_conversion(folder, head="sidecar")), mode)
    trunk = mlx_conversion(folder, bits=4, head="none")
    stored = Path(shutil.copytree(trunk, tmp_path / "packed"))
    named = {f"language_model.{name}": value for name, value in packed.items()}
    tiny.save_weights(stored, tiny.load_weights(trunk) | named, made_by="mlx")
    expected = head_of(with_head(trunk, tmp_path / "numbers", numbers))
    assert_equal(unpacked_head_of(stored), expected)
    quantization = open_checkpoint(trunk).config["quantization"]
    with_config(stored, quantization=quantization | by_layer(packed, mode, "language_model."))
    assert_equal(unpacked_head_of(stored), expected)
    assert_exact(stored)


@pytest.mark.parametrize("mode", tiny.MODES)
def test_converting_keeps_or_undoes_a_heads_packing(
    raw_checkpoint: Checkpoints, mlx_conversion: Checkpoints, tmp_path: Path, mode: str
) -> None:
    trunk = mlx_conversion(raw_checkpoint("qwen3_5_moe", dtype="float32", vocab=VOCAB), head="sidecar")
    packed, numbers = tiny.pack(side_car_of(trunk), mode)
    folder = with_head(trunk, tmp_path / "packed", packed)
    kept = convert(folder, tmp_path / "kept").folder
    assert_equal(side_car_of(kept), packed)
    assert open_checkpoint(kept).config["mtp_head"]["quantization"] == by_layer(packed, mode)
    undone = convert(folder, tmp_path / "undone", head_bits=16).folder
    assert_equal(head_of(undone), head_of(with_head(trunk, tmp_path / "numbers", numbers)))
    assert open_checkpoint(undone).config["mtp_head"]["quantization"] is None


@pytest.mark.parametrize("kind", cases(DTYPES, default=["qwen3_5_moe"]))
@pytest.mark.parametrize(("head_bits", "packed"), [(None, 8), (8, 8), (4, 4), (16, None)])
def test_convert_packs_as_mlx_lm_does(
    raw_checkpoint: Checkpoints,
    mlx_conversion: Checkpoints,
    tmp_path: Path,
    kind: tiny.Kind,
    head_bits: int | None,
    packed: int | None,
) -> None:
    """The fixture's conversion packs the trunk by mlx-lm's function, and the head by `mx.quantize`."""
    folder = raw_checkpoint(kind, vocab=VOCAB)
    made = convert(folder, tmp_path / "made", quantization=Quantization(), head_bits=head_bits).folder
    expected = mlx_conversion(folder, bits=4, head="sidecar", head_bits=packed)
    assert_equal(trunk_of(made), trunk_of(expected))
    assert_equal(head_of(made), head_of(expected))


@pytest.mark.parametrize(
    ("kind", "mode"),
    grid(
        DTYPES,
        ["mxfp4", "nvfp4", "mxfp8"],
        default=lambda kind, mode: (
            (kind, mode) in (("qwen3_5", "mxfp4"), ("qwen3_5_moe", "nvfp4"), ("qwen3_next", "mxfp8"))
        ),
    ),
)
def test_a_trunk_packed_in_any_mode_takes_the_head(
    raw_checkpoint: Checkpoints, mlx_conversion: Checkpoints, tmp_path: Path, kind: tiny.Kind, mode: str
) -> None:
    folder = raw_checkpoint(kind, vocab=VOCAB)
    made = convert(folder, tmp_path / "made", quantization=Quantization(mode)).folder
    assert_equal(head_of(made), head_of(mlx_conversion(folder, bits=4, head="sidecar", head_bits=8)))
    assert_exact(made)
