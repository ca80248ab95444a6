"""Checkpoints that somebody made to do harm: each is refused at once, in one line, with exit code 2."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.nn as nn
import pytest

from mlxmtp.checkpoints import open_checkpoint
from mlxmtp.checkpoints.checkpoint import card_base
from mlxmtp.cli import main
from mlxmtp.errors import CheckpointError
from mlxmtp.files import MAX_FILE_BYTES
from mlxmtp.targets import load_target
from tests import tiny
from tests.targets.sweep import write_checkpoint
from tests.within import within

DEEP = "[" * 100_000
SECONDS = 20.0
"""For a refusal, on a busy machine; what is refused would run for ever or for hours."""

Refused = Callable[[str], None]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny.raw_checkpoint(tmp_path / "model", "qwen3_5")


@pytest.fixture
def refused(model: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """A function that runs `mlxmtp inspect` and compares its one line."""

    def inspect(says: str) -> None:
        with within(SECONDS):
            code = main(["inspect", str(model)])
        told = capsys.readouterr().err
        assert (code, told.count("\n")) == (2, 1), (says, told)
        assert says in told, told

    return inspect


def header_of(file: Path) -> tuple[dict[str, Any], bytes]:
    raw = file.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def write_header(file: Path, header: dict[str, Any] | str, data: bytes = b"") -> None:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)


def test_deep_json(model: Path, refused: Refused) -> None:
    weights, index = model / "model.safetensors", model / "model.safetensors.index.json"
    before = weights.read_bytes(), (model / "config.json").read_bytes()
    for header in ('{"a":' + DEEP, '{"__metadata__":' + DEEP):
        write_header(weights, header)
        refused("model.safetensors: its safetensors header cannot be read")
    weights.write_bytes(before[0])
    index.write_text('{"weight_map":' + DEEP)
    refused("index.json: cannot be read as an index of shards (nested too deeply)")
    index.unlink()
    for config in (DEEP, '{"model_type": "qwen3_5", "a": ' + "[" * 100 + "]" * 100 + "}"):
        (model / "config.json").write_text(config)
        refused("config.json: not valid JSON (nested ")
    (model / "config.json").write_bytes(before[1])
    (model / "generation_config.json").write_text(DEEP)
    with within(SECONDS), pytest.raises(CheckpointError):
        load_target(open_checkpoint(model))


def test_a_number_of_shards_that_nobody_has(model: Path, refused: Refused) -> None:
    shard = model / "model-00001-of-99999999999.safetensors"
    (model / "model.safetensors").rename(shard)
    refused("missing model-00002-of-99999999999.safetensors, model-00003-of-99999999999.safetensors")
    shard.rename(model / "model-00000000000000000000007-of-00000000000000000000008.safetensors")
    refused("missing model-00000000000000000000001-of-00000000000000000000008.safetensors")


def test_what_is_no_regular_file(model: Path, refused: Refused) -> None:
    names = ("model.safetensors", "mtp.safetensors", "model-extra.safetensors", "config.json", "tokenizer.json",
             "model.safetensors.index.json", "chat_template.jinja", "generation_config.json")  # fmt: skip
    for name in names:
        file = model / name
        before = file.read_bytes() if file.exists() else None
        for make in (os.mkfifo, lambda file: file.symlink_to("/dev/zero")):
            file.unlink(missing_ok=True)
            make(file)
            refused(f"{name}: cannot be read (not a regular file)")
        file.unlink()
        if before is not None:
            file.write_bytes(before)
    (model / "README.md").symlink_to("/dev/zero")  # nobody needs it
    with within(SECONDS):
        assert open_checkpoint(model).base is None


def test_files_without_end(model: Path, refused: Refused) -> None:
    for name in ("tokenizer.json", "config.json", "model.safetensors.index.json"):
        file = model / name
        before = file.read_bytes() if file.exists() else None
        with file.open("wb") as out:
            out.truncate(MAX_FILE_BYTES + 1)
        refused(name)
        file.unlink() if before is None else file.write_bytes(before)


def test_impossible_tensors(model: Path, refused: Refused) -> None:
    weights = model / "model.safetensors"
    header, data = header_of(weights)
    name, other = [name for name, entry in header.items() if name != "__metadata__"][:2]
    rows, columns = header[name]["shape"][0], header[name]["shape"][-1]
    start, stop = header[name]["data_offsets"]
    changes: list[tuple[str, Any, str]] = [
        ("shape", [-rows, -columns], "header cannot be read"),
        ("shape", [rows, True], "header cannot be read"),
        ("shape", [10**400], "header cannot be read"),
        ("shape", [1] * 100, "header cannot be read"),
        ("shape", None, "header cannot be read"),
        ("data_offsets", [float(start), float(stop)], "header cannot be read"),
        ("data_offsets", [start - 10**9, stop - 10**9], "header cannot be read"),
        ("data_offsets", [start], "header cannot be read"),
        ("data_offsets", [start + 10**9, stop + 10**9], "cut short"),
        ("dtype", ["BF16"], "header cannot be read"),
    ]
    for field, value, says in changes:
        write_header(weights, header | {name: header[name] | {field: value}}, data)
        refused(says)
    twice = header | {name: header[name], "twice": header[name]}
    write_header(weights, twice, data)
    refused("two tensors of its safetensors header share bytes")
    write_header(weights, header | {other: header[other] | {"dtype": "Q4_9"}}, data)
    assert load_refusal(model) == f"{other} is Q4_9, which MLX does not read; expected another conversion"


def load_refusal(model: Path) -> str:
    with within(SECONDS), pytest.raises(CheckpointError) as refusal:
        load_target(open_checkpoint(model))
    text = str(refusal.value)
    assert "\n" not in text, text
    return text.removeprefix(f"{model}: ")


def test_inspect_does_not_promise_what_loading_refuses(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    header, data = header_of(model / "model.safetensors")
    name = next(name for name in header if name.startswith("mtp."))
    write_header(model / "model.safetensors", header | {name: header[name] | {"dtype": "Q4_9"}}, data)
    assert main(["inspect", str(model), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["verdict"], report["because"]) == ("refused", load_refusal(model).join((f"{model}: ", "")))


def test_impossible_configurations(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    inner: dict[str, tuple[Any, str]] = {
        "num_hidden_layers": (10**9, "its config has num_hidden_layers 1000000000, and the files hold "),
        "mtp_num_hidden_layers": (10**9, "its config has mtp_num_hidden_layers 1000000000, and the files hold "),
        "vocab_size": (10**12, f"its config has vocab_size 1000000000000; expected 1 to {2**31 - 1}"),
        "hidden_size": (0, "its config has hidden_size 0; expected 1 to "),
        "num_attention_heads": (0, ""),
        "num_key_value_heads": (0, ""),
        "full_attention_interval": (0, "mlx-lm cannot build the model that its config.json describes (ZeroDivision"),
        "linear_num_key_heads": (10**400, ""),
        "rope_parameters": ([[]], ""),
    }
    for name, (value, says) in inner.items():
        changed = config | {"text_config": config["text_config"] | {name: value}}
        (model / "config.json").write_text(json.dumps(changed))
        assert says in load_refusal(model), name
    for kind in ("base", "cache", "switch_layers", "..generate", "qwen3_5.x", "no_such_type", ""):
        (model / "config.json").write_text(json.dumps(config | {"model_type": kind}))
        assert f"mlx-lm has no model type {kind!r}" in load_refusal(model), kind


def test_counts_of_all_kinds_are_bounded_by_what_the_files_hold(tmp_path: Path) -> None:
    """Modules, whatever the count's name is; lists in the model's arguments; caches."""
    counts: list[tuple[str, str, str, int, str]] = [
        ("gemma3n", "text_config", "altup_num_inputs", 40_000, "a model of more than "),
        ("dbrx", "ffn_config", "moe_num_experts", 10**9, "a model of more than 2368 modules, and the files hold 37 te"),
        ("nanbeige", "", "num_loops", 10**9, "its config has num_loops 1000000000, and the files hold "),
        (
            "gemma4",
            "text_config",
            "sliding_window_pattern",
            10**9,
            "its config has sliding_window_pattern 1000000000, ",
        ),
        ("deepseek_v41", "", "hc_mult", 30_000, "its config has hc_mult 30000, and the files hold "),
    ]
    for kind, part, name, value, says in counts:
        write_checkpoint(kind, tmp_path / kind)
        config = json.loads((tmp_path / kind / "config.json").read_text())
        (config[part] if part else config)[name] = value
        (tmp_path / kind / "config.json").write_text(json.dumps(config))
        assert says in load_refusal(tmp_path / kind), kind
    build = nn.Module.__init__
    write_checkpoint("dbrx", tmp_path / "dbrx")
    assert load_target(open_checkpoint(tmp_path / "dbrx")).vocab_size
    assert nn.Module.__init__ is build


def test_names_of_layers_beyond_all_numbers(model: Path) -> None:
    header, data = header_of(model / "model.safetensors")
    name = next(name for name in header if name.startswith("mtp."))
    header["model.layers." + "9" * 5000 + ".x"] = header.pop(name)
    write_header(model / "model.safetensors", header, data)
    load_refusal(model)


def test_names_that_no_file_has(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("~no-such-user/model", "x" * 5_000, "a\0b", "/dev/null/model"):
        for command in (["inspect", name], ["convert", name, "out"], ["attach", name, "--from", name]):
            assert main(command) == 2, name[:20]
            told = capsys.readouterr().err
            assert told.count("\n") == 1, told
            assert "no such folder" in told, told


def test_a_model_card_of_line_ends_costs_no_time() -> None:
    with within(SECONDS):
        assert card_base("---\nbase_model:" + "\n" * 60_000) is None
        assert card_base("---\n" + "base_model:\n" * 5_000) is None
    for card in ("base_model: a/b", "base_model:\n- a/b", "base_model:\n  - a/b\n  - c/d", 'base_model: "a/b"'):
        assert card_base(f"---\nlicense: mit\n{card}\n---\n") == "a/b", card
