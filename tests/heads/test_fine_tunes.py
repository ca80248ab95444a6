"""Fine-tunes and merges: heads under other names, in other files, or twice, beside trunks that changed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlxmtp import GenerationOptions, load
from mlxmtp.checkpoints.names import unwrapped
from mlxmtp.conversion.attach import attach
from mlxmtp.conversion.convert import convert
from mlxmtp.conversion.inspect import inspect
from mlxmtp.errors import CheckpointError, HeadError
from tests import tiny
from tests.comparing import Weights, assert_equal, head_of, trunk_of
from tests.tiny.files import write_json

Checkpoints = Callable[..., Path]
INDEX = "model.safetensors.index.json"
MTP = "mtp."


@pytest.fixture(scope="module")
def base(raw_checkpoint: Checkpoints) -> Path:
    return raw_checkpoint("qwen3_5", layers=2, interval=2)


@pytest.fixture(scope="module")
def base_head(base: Path) -> Weights:
    return head_of(base)


def fine_tune(base: Path, folder: Path, **config: Any) -> Path:
    """Copy a model without its weights; `config` changes the text model's config, None removes a field."""
    shutil.copytree(base, folder, ignore=shutil.ignore_patterns("*.safetensors*"))
    found = json.loads((folder / "config.json").read_text())
    text = found.get("text_config", found)
    text.update(config)
    for name in [name for name, value in config.items() if value is None]:
        del text[name]
    write_json(folder / "config.json", found)
    return folder


def save(folder: Path, file: str, weights: Weights) -> None:
    (folder / file).parent.mkdir(exist_ok=True)
    mx.eval(weights)
    mx.save_safetensors(str(folder / file), weights, {"format": "pt"})


def split(weights: Weights) -> tuple[Weights, Weights]:
    """Return trunk and head."""
    return tuple({n: w for n, w in weights.items() if n.startswith(MTP) is head} for head in (False, True))


def test_names_that_training_programs_give(base: Path, base_head: Weights, tmp_path: Path) -> None:
    trunk = trunk_of(base)
    compiled = lambda name: name.replace("layers.0.", "layers.0._orig_mod.")  # noqa: E731
    names: dict[str, Callable[[str], str]] = {
        **{prefix: lambda n, p=prefix: n.replace(MTP, f"{p}.mtp.") if n.startswith(MTP) else n for prefix in (
            "model", "language_model", "model.language_model", "language_model.model",
        )},
        "PEFT": lambda name: f"base_model.model.{name}",
        "data parallel": lambda name: f"module.{name}",
        "compiled": lambda name: f"_orig_mod.{name}",
        "compiled layers, sharded": lambda name: f"module.{compiled(name)}".replace("mlp.", "_fsdp_wrapped_module.mlp."),  # noqa: E501
        "the head alone": lambda name: f"base_model.model.{compiled(name)}" if name.startswith(MTP) else name,
        "half of the head": lambda name: f"model.{name}" if name.startswith("mtp.layers") else name,
    }  # fmt: skip
    weights = tiny.load_weights(base)
    for case, rename in names.items():
        folder = fine_tune(base, tmp_path / case)
        save(folder, "model.safetensors", {rename(name): weight for name, weight in weights.items()})
        assert_equal(head_of(folder), base_head)
        assert_equal(trunk_of(folder), trunk)
    assert unwrapped("model.layers.0.module.weight") == "model.layers.0.module.weight", "only what stands before"
    save(folder, "model.safetensors", weights | {"module.lm_head.weight": weights["lm_head.weight"]})
    with pytest.raises(CheckpointError, match=r"holds? lm_head.weight twice \(lm_head.weight, module.lm_head.weight\)"):
        trunk_of(folder)


def test_files_that_a_head_is_in(base: Path, base_head: Weights, tmp_path: Path) -> None:
    trunk, head = split(tiny.load_weights(base))
    bare = {name.removeprefix(MTP): weight for name, weight in head.items()}
    ghosts = {"mtp.ghost": "model.safetensors", "mtp.fc.weight": "model.safetensors"}
    half = len(head) // 2
    first, second = dict([*head.items()][:half]), dict([*head.items()][half:])
    cases: dict[str, tuple[dict[str, Weights], dict[str, str]]] = {
        "a side-car": ({"mtp.safetensors": head}, {}),
        "mlx-lm's side-cars": ({"mtp-00001-of-00002.safetensors": first, "mtp-00002-of-00002.safetensors": second}, {}),
        "a folder": ({"mtp/model.safetensors": bare}, {}),
        "a folder's weights": ({"mtp/weights.safetensors": head}, {}),
        "a shard of another name": ({"model-mtp.safetensors": bare}, {}),
        "compressed-tensors' shard": ({"model_mtp.safetensors": head}, dict.fromkeys(head, "model_mtp.safetensors")),
        "a numbered shard": ({"model-mtp-00001-of-00001.safetensors": head}, {}),
        "a file that the index names": ({"nextn.safetensors": head}, dict.fromkeys(head, "nextn.safetensors")),
        "an index of tensors that are nowhere": ({"mtp.safetensors": head}, ghosts),
    }
    for case, (files, index) in cases.items():
        folder = fine_tune(base, tmp_path / case)
        for file, weights in {"model.safetensors": trunk, **files}.items():
            save(folder, file, weights)
        where = dict.fromkeys(trunk, "model.safetensors") | index
        write_json(folder / INDEX, {"weight_map": where})
        assert_equal(head_of(folder), base_head)
        report = inspect(folder)
        assert report.speculates, case
        assert report.head, case
        assert {file.rpartition("/")[2] for file in report.head.weights.files} == {n.rpartition("/")[2] for n in files}
    folder = tmp_path / "mlx-lm's side-cars"
    (folder / "mtp-00001-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"missing mtp-00001-of-00002.safetensors"):
        head_of(folder)


def test_a_head_in_a_folder_of_that_name_is_no_side_car(base: Path, base_head: Weights, tmp_path: Path) -> None:
    trunk, head = split(tiny.load_weights(base))
    folder = fine_tune(base, tmp_path / "mtp")
    save(folder, "model.safetensors", trunk | head)
    assert_equal(head_of(folder), base_head)


def test_a_head_that_is_there_twice(base: Path, base_head: Weights, tmp_path: Path) -> None:
    trunk, head = split(tiny.load_weights(base))
    other = {**head, "mtp.fc.weight": -head["mtp.fc.weight"]}
    headless = fine_tune(base, tmp_path / "headless")
    save(headless, "model.safetensors", trunk)
    layouts: dict[str, Callable[[Weights], dict[str, Weights]]] = {
        "under two prefixes": lambda copy: {"model.safetensors": trunk | head | {f"model.{n}": copy[n] for n in copy}},
        "in two files": lambda copy: {"model.safetensors": trunk | head, "model_mtp.safetensors": copy},
    }
    for case, files in layouts.items():
        for same, copy in ((True, head), (False, other)):
            folder = fine_tune(base, tmp_path / f"{case} {same}")
            for file, weights in files(copy).items():
                save(folder, file, weights)
            if same:
                assert_equal(head_of(folder), base_head)
                continue
            with pytest.raises(HeadError, match=r"there are two heads, and their fc.weight differs \(.*remove one"):
                head_of(folder)
            report = inspect(folder)
            assert report.support == "refused"
            assert "two heads" in report.because
            with pytest.raises(HeadError, match="two heads"):
                attach(headless, str(folder))
    folder = fine_tune(base, tmp_path / "side-car")
    save(folder, "model.safetensors", trunk | other)
    save(folder, "mtp.safetensors", head)
    assert_equal(head_of(folder), base_head)
    assert inspect(folder).because == "its head is in a side-car; the one in model.safetensors is not used"


def test_configs_that_lost_the_head(base: Path, base_head: Weights, tmp_path: Path) -> None:
    for value in (None, 0):
        folder = fine_tune(base, tmp_path / str(value), mtp_num_hidden_layers=value)
        save(folder, "model.safetensors", tiny.load_weights(base))
        assert_equal(head_of(folder), base_head)
        assert inspect(folder).speculates


def test_norms_that_have_their_offset_beside_a_raw_trunk(base: Path, base_head: Weights, tmp_path: Path) -> None:
    trunk, head = split(tiny.load_weights(base))
    folder = fine_tune(base, tmp_path / "model")
    save(folder, "model.safetensors", trunk | {n: w + 1 if w.ndim == 1 else w for n, w in head.items()})
    assert_equal(head_of(folder), base_head)
    report = inspect(folder).head
    assert report
    assert report.norms == "shifted"


def test_text_only_and_vision_language(base: Path, raw_checkpoint: Checkpoints, tmp_path: Path) -> None:
    text = raw_checkpoint("qwen3_5_text", layers=2, interval=2)
    for source, other in ((base, text), (text, base)):
        headless = fine_tune(other, tmp_path / other.name)
        save(headless, "model.safetensors", split(tiny.load_weights(other))[0])
        attach(headless, str(source))
        assert_equal(head_of(headless), head_of(source))


def test_a_vocabulary_that_grew(base: Path, nextn_checkpoint: Checkpoints, tmp_path: Path) -> None:
    """Rows of the fine-tune's own tokens are the trunk's; a head that shares the matrices takes them as they are."""
    for own in ("copies", "other"):
        plain = nextn_checkpoint("glm4_moe", own=own, layers=2, vocab=288)
        for rows in (300, 280):
            folder = fine_tune(plain, tmp_path / f"{own} {rows}", vocab_size=rows)
            weights, grown = tiny.load_weights(plain), {}
            for name in ("model.embed_tokens.weight", "lm_head.weight"):
                added = mx.random.normal((12, 64), key=mx.random.key(3)) * 0.1
                grown[name] = mx.concatenate([weights[name], added])[:rows]
            save(folder, "model.safetensors", weights | grown)
            expected = head_of(plain)
            for name in [name for name in expected if name.endswith(("embed_tokens.weight", "lm_head.weight"))]:
                trunk = grown["lm_head.weight" if "lm_head" in name else "model.embed_tokens.weight"]
                expected[name] = mx.concatenate([expected[name], trunk[288:]])[:rows]
            assert_equal(head_of(folder), expected)
            engine = load(folder)
            tokens = [
                engine.generate([5, 9, 3], GenerationOptions(max_tokens=8, depth=depth)).tokens for depth in (0, 3)
            ]
            assert tokens[0] == tokens[1], f"{own} {rows}"
    trunk, _ = split(tiny.load_weights(base))
    folder = fine_tune(base, tmp_path / "shared", vocab_size=300)
    for name in [name for name in trunk if name.endswith(("embed_tokens.weight", "lm_head.weight"))]:
        trunk[name] = mx.concatenate([trunk[name], trunk[name][:12]])
    save(folder, "model.safetensors", trunk)
    attach(folder, str(base))
    assert_equal(head_of(folder), head_of(base))


def test_a_packed_trunk_beside_a_head_that_is_not(base: Path, base_head: Weights, tmp_path: Path) -> None:
    """As AWQ and GPTQ pack it: mlx-lm repacks the trunk, and the head stays in its dtype."""
    weights = tiny.load_weights(base)
    for method in ("awq", "gptq"):
        folder = fine_tune(base, tmp_path / method)
        config = json.loads((folder / "config.json").read_text())
        write_json(
            folder / "config.json",
            config | {"quantization_config": {"quant_method": method, "bits": 4, "group_size": 32}},
        )
        packed = dict(weights)
        for name in [name for name in weights if ".mlp." in name and not name.startswith(MTP)]:
            out, columns = packed.pop(name).shape
            stem = name.removesuffix(".weight")
            packed[f"{stem}.qweight"] = mx.random.randint(0, 2**31 - 1, (columns, out // 8), key=mx.random.key(0))
            packed[f"{stem}.scales"] = mx.full((columns // 32, out), 0.01, mx.bfloat16)
        save(folder, "model.safetensors", packed)
        assert_equal(head_of(folder), base_head)
        assert inspect(folder).speculates
        packed["mtp.layers.0.mlp.up_proj.qweight"] = packed.pop("mtp.layers.0.mlp.up_proj.weight").view(mx.int32)
        save(folder, "model.safetensors", packed)
        with pytest.raises(HeadError, match=r"unknown tensor layers.0.mlp.up_proj.qweight"):
            head_of(folder)


def test_convert_and_attach_from_a_fine_tune(base: Path, base_head: Weights, tmp_path: Path) -> None:
    folder = fine_tune(base, tmp_path / "merge")
    weights = tiny.load_weights(base)
    save(folder, "model.safetensors", {f"base_model.model.{name}": weight for name, weight in weights.items()})
    convert(folder, tmp_path / "converted")
    assert_equal(head_of(tmp_path / "converted"), base_head)
    assert_equal(trunk_of(tmp_path / "converted"), trunk_of(base))
    headless = fine_tune(base, tmp_path / "headless")
    save(headless, "model.safetensors", split(weights)[0])
    attach(headless, str(folder))
    assert_equal(head_of(headless), base_head)
    changed = {n: w + 0.5 if n.endswith("layers.0.input_layernorm.weight") else w for n, w in weights.items()}
    other = fine_tune(base, tmp_path / "other")
    save(other, "model.safetensors", {f"module.{name}": weight for name, weight in changed.items()})
    (headless / "mtp.safetensors").unlink()
    with pytest.raises(HeadError, match=r"module.*layers.0.input_layernorm.weight of other is not"):
        attach(headless, str(other))
