"""`mlxmtp inspect`: its lines, its JSON, the list of the cache, and refusals."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import mlx.core as mx
import pytest

from mlxmtp.checkpoints.hub import download
from tests import tiny
from tests.cli.conftest import ROOT, Ran, assert_refused

MODEL, STRIPPED = "maker/original", "community/stripped"
DEMO = ROOT / "mlxmtp" / "demo"


@pytest.fixture
def inspect(main_: Callable[..., Ran]) -> Callable[..., Ran]:
    return lambda *arguments: main_("inspect", *map(str, arguments))


def test_a_folder(inspect, raw):
    ran = inspect(raw)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.splitlines() == [
        f"model   {raw}",
        "type    qwen3_5, Hugging Face layout",
        "size    4 layers, hidden 64, vocabulary 288, context 4096",
        "trunk   543.2 kB in 3 files; BF16",
        "head    qwen-mtp, 1 layer, shards; 131.8 kB in 3 files; BF16; norms raw",
        "mlxmtp  speculates: its head is in the shards",
    ]


def test_a_repo_and_how_to_give_it_its_head(inspect, hub, stripped):
    commit = hub.add(STRIPPED, stripped)
    ran = inspect(STRIPPED)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.splitlines() == [
        "model   community/stripped, on the Hub, not downloaded",
        f"commit  {commit}",
        "type    qwen3_5, MLX layout",
        "size    4 layers, hidden 64, vocabulary 288, context 4096",
        "trunk   158.3 kB in model.safetensors; 4-bit affine, groups of 64; the rest BF16",
        "head    none",
        "mlxmtp  decodes plainly: the files hold no MTP head (no mtp.* tensors), but the config declares one; "
        "`mlxmtp attach community/stripped --from ORIGINAL` fetches it",
    ]


def test_a_side_car_of_experts(inspect, main_, raw_checkpoint, tmp_path):
    source = raw_checkpoint("qwen3_5_moe", dtype="float32")
    assert main_("convert", str(source), str(tmp_path / "moe"), "-q").code == 0
    assert inspect(tmp_path / "moe").out.splitlines()[2:] == [
        "size    4 layers, hidden 64, experts 4, vocabulary 288, context 4096",
        "trunk   276.3 kB in model.safetensors; 4-bit affine, groups of 64; "
        "8 of 53 matrices 8-bit affine, groups of 64; the rest F32",
        "head    qwen-mtp, 1 layer, side-car; 117.1 kB in mtp.safetensors; 8-bit affine, groups of 64; the rest F32; "
        f"norms shifted; from {source.name}",
        "mlxmtp  speculates: its head is in a side-car",
    ]


def test_a_drafter(inspect, raw, tmp_path):
    lines = inspect(tiny.drafter(raw, tmp_path / "drafter")).out.splitlines()
    assert lines[1:5] == [
        "type    qwen3_5_mtp, mlx-vlm drafter layout",
        "size    4 layers, hidden 64, vocabulary 288, context 4096",
        "trunk   none",
        "head    qwen-mtp, 1 layer, drafter; 131.8 kB in model.safetensors; BF16; norms shifted",
    ]
    assert lines[5].startswith("mlxmtp  refuses it: ")


def test_json_has_a_fixed_schema(inspect, raw, stripped):
    weights = {"nbytes": int, "dtype": str, "quantization": str | None, "files": list}
    schema = {
        "name": str, "where": str, "revision": str | None, "model_type": str, "format": str, "layers": int,
        "hidden_size": int, "vocab_size": int, "context": int, "experts": int | None, "trunk": weights,
        "head": {"family": str, "place": str, "layers": int, "norms": str, "weights": weights, "source": str | None},
        "verdict": str, "because": str,
    }  # fmt: skip
    report = json.loads(inspect(raw, "--json").out)
    assert_schema(report, schema)
    assert (report["where"], report["verdict"], report["head"]["place"]) == ("folder", "speculates", "shards")
    report = json.loads(inspect(stripped, "--json").out)
    assert_schema(report, schema | {"head": type(None)})
    assert (report["verdict"], report["trunk"]["quantization"]) == ("plain", "4-bit affine, groups of 64")
    checked = json.loads(inspect(raw, "--json", "--check").out)
    assert_schema(checked, schema | {"check": {"finite": bool, "acceptance": float}})
    assert json.loads(inspect(stripped, "--json", "--check").out)["check"] is None


def assert_schema(value: object, schema: object) -> None:
    if isinstance(schema, dict):
        assert isinstance(value, dict)
        assert value.keys() == schema.keys()
        for name, part in schema.items():
            assert_schema(value[name], part)
    else:
        assert isinstance(value, schema)


def test_the_cache(inspect, hub, data, raw, stripped, monkeypatch):
    assert inspect().out == f"no models in the local Hub cache, {huggingface_hub.constants.HF_HUB_CACHE}\n"
    assert json.loads(inspect("--json").out) == []
    for name, folder in {MODEL: raw, STRIPPED: stripped, "maker/cut": raw}.items():
        hub.add(name, folder)
        shard = max(download(name).glob("*.safetensors"))
    shard.resolve().write_bytes(b"")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    ran = inspect()
    lines = ran.out.splitlines()
    assert (ran.code, len(lines)) == (0, 3)
    assert lines[0].startswith("community/stripped  qwen3_5  158.3 kB  decodes plainly: ")
    assert "`mlxmtp attach community/stripped --from ORIGINAL`" in lines[0]
    assert lines[1].startswith("maker/cut                              unreadable: model-00003-of-00003.safetensors: ")
    assert lines[2] == "maker/original      qwen3_5  675.1 kB  speculates"
    listed = json.loads(inspect("--json").out)
    assert listed[0] == json.loads(inspect(STRIPPED, "--json").out)
    assert listed[1].keys() == {"name", "error"}


def test_check_of_a_head_that_fits(inspect):
    *_, line = inspect(DEMO, "--check").out.splitlines()
    told = re.fullmatch(r"check   (\d+)% of the head's drafts taken on a short text", line)
    assert told
    assert int(told[1]) > 20


def permuted(fc: mx.array) -> mx.array:
    return fc[:, ::-1]


def not_a_number(fc: mx.array) -> mx.array:
    return mx.full(fc.shape, mx.nan, fc.dtype)


@pytest.mark.parametrize(
    ("source", "damage", "says"),
    [
        (DEMO, permuted, "the trunk takes only"),
        (None, not_a_number, "the head's logits are not finite"),
    ],
    ids=["permuted", "not finite"],
)
def test_check_warns_of_a_damaged_head(inspect, raw, tmp_path, source, damage, says):
    folder = Path(shutil.copytree(source or raw, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors*")))
    weights = tiny.load_weights(source or raw)
    weights["mtp.fc.weight"] = damage(weights["mtp.fc.weight"])
    tiny.save_weights(folder, weights, made_by="pt")
    ran = inspect(folder, "--check")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.splitlines()[-1].startswith(f"check   warning: {says}")


def test_check_without_a_head(inspect, stripped, hub):
    assert inspect(stripped, "--check").out.splitlines()[-1] == "check   there is no head to try"
    assert_refused(inspect("--check"), "--check and --try-head load a model; name the one to try")


def test_check_on_too_short_a_text(inspect, raw, tmp_path):
    (tmp_path / "text").write_text("ab")
    ran = inspect(raw, "--check", "--text", tmp_path / "text")
    assert (ran.code, ran.err) == (2, "mlxmtp: the text has 2 tokens; expected 3 or more\n")


def nothing_in_it(folder: Path) -> Path:
    return folder


def gguf(folder: Path) -> Path:
    (folder / "model-q4.gguf").write_bytes(b"GGUF")
    return folder


def torch_weights(folder: Path) -> Path:
    (folder / "config.json").write_text('{"model_type": "qwen3_5"}')
    (folder / "pytorch_model.bin").write_bytes(b"PK")
    return folder


def a_file(folder: Path) -> Path:
    (folder / "config.json").write_text('{"model_type": "qwen3_5"}')
    return folder / "config.json"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (nothing_in_it, "no config.json; it is empty; expected a model in Hugging Face or MLX layout"),
        (gguf, "not a GGUF file (4 bytes, expected b'GGUF'); download it again"),
        (torch_weights, "no model*.safetensors files; it holds pytorch_model.bin, config.json; expected a model"),
        (a_file, "config.json is a file; expected the folder of a model, or a Hub repo (owner/name)"),
    ],
)
def test_what_is_no_model(inspect, hub, tmp_path, make, says):
    (tmp_path / "thing").mkdir()
    path = make(tmp_path / "thing")
    assert_refused(inspect(path), f"{path}", says)
    if path.is_dir():
        hub.add("maker/thing", path)
        assert_refused(inspect("maker/thing"), "maker/thing", says)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("", "the model's name is empty; expected a model's folder or a Hub repo"),
        ("no-such-folder", "no-such-folder: no such folder; expected a model's folder or a Hub repo (owner/name)"),
        ("./no/such", "no such folder; expected"),
        ("https://huggingface.co/maker/original", "no such folder; expected"),
        ("maker/nothing", "maker/nothing: no such folder, and no such repo on the Hub"),
        ("maker/gated", "maker/gated: gated; accept its terms on the Hub, then run `hf auth login`"),
    ],
)
def test_names_of_nothing(inspect, hub, raw, name, says):
    hub.add("maker/gated", raw, gated=True)
    assert_refused(inspect(name), says)


def test_the_bundled_model_has_a_name(inspect, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "qwen3_5" in inspect("demo").out
    (tmp_path / "demo").mkdir()
    assert_refused(inspect("demo"), "demo: no config.json")


def test_no_connection(inspect, hub, monkeypatch):
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert_refused(inspect(MODEL), "maker/original: cannot be reached on the Hub", "offline mode", "HF_HUB_OFFLINE")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert_refused(inspect(MODEL), "maker/original: ", "cannot be reached on the Hub")
