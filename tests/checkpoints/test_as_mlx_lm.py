"""Folders with more than a model in them, and models whose files state less than others' do."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest

from mlxmtp.checkpoints import open_checkpoint
from mlxmtp.checkpoints.hub import wanted_files
from mlxmtp.engine.loading import load_tokenizer
from mlxmtp.targets import Target, load_target

APPLE_DOUBLE = bytes([0, 5, 22, 7, 0, 2, 0, 0]) + b"Mac OS X        " + bytes(4000)
"""The beginning of a `._` file, which macOS writes beside each file on a disk of another format."""
MESSAGES = [{"role": "user", "content": "hi"}]


def logits(target: Target) -> mx.array:
    return target.forward(mx.array([[5, 9, 20, 16]]), target.make_cache())[0]


def index_of(folder: Path, name: str, *files: str) -> None:
    (folder / name).write_text(json.dumps({"metadata": {}, "weight_map": {f"of {file}": file for file in files}}))


def apple_double(folder: Path) -> None:
    for name in ("model.safetensors", "config.json", "model.safetensors.index.json", "tokenizer.json", "x.tiktoken"):
        (folder / f"._{name}").write_bytes(APPLE_DOUBLE)


def stale_index(folder: Path) -> None:
    shards = (f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
    index_of(folder, "model.safetensors.index.json", *shards)


def other_weights(folder: Path) -> None:
    arrays = {"model.norm.weight": mx.zeros(7), "layers.0.attention.wq.weight": mx.zeros((3, 3))}
    for name in ("adapters", "consolidated", "consolidated-00001-of-00009"):
        mx.save_safetensors(str(folder / f"{name}.safetensors"), arrays)
    index_of(folder, "consolidated.safetensors.index.json", "consolidated-00009-of-00009.safetensors")


def shard_of_an_earlier_download(folder: Path) -> None:
    mx.save_safetensors(str(folder / "model-00001-of-00004.safetensors"), {})


@pytest.mark.parametrize("shards", [1, 3])
def test_what_lies_beside_whole_weights_changes_nothing(
    raw_checkpoint: Callable[..., Path], tmp_path: Path, shards: int
) -> None:
    plain = raw_checkpoint("qwen3_5", shards=shards)
    before = open_checkpoint(plain)
    expected = logits(load_target(before))
    beside = [apple_double, other_weights]
    if shards == 1:
        beside += [stale_index, shard_of_an_earlier_download]
    for add in beside:
        folder = Path(shutil.copytree(plain, tmp_path / add.__name__))
        add(folder)
        checkpoint = open_checkpoint(folder)
        assert checkpoint.tensors.keys() == before.tensors.keys(), add
        assert mx.array_equal(logits(load_target(checkpoint)), expected), add
        assert load_tokenizer(folder).encode("a") == load_tokenizer(plain).encode("a"), add


def test_an_index_of_other_shards_is_stale(raw_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(raw_checkpoint("qwen3_5", shards=3), tmp_path / "model"))
    stale_index(folder)
    assert open_checkpoint(folder).tensors.keys() == open_checkpoint(raw_checkpoint("qwen3_5")).tensors.keys()


def test_other_weights_are_not_downloaded() -> None:
    names = ["config.json", "model.safetensors", "consolidated.safetensors", "adapters.safetensors", "mtp.safetensors"]
    assert wanted_files(names) == ["config.json", "model.safetensors", "mtp.safetensors"]


def test_tied_embeddings_that_only_the_outer_config_states(raw_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    for tied in (True, False):
        plain = raw_checkpoint("qwen3_5", tied=tied)
        folder = Path(shutil.copytree(plain, tmp_path / str(tied)))
        config = json.loads((folder / "config.json").read_text())
        assert config["tie_word_embeddings"] is config["text_config"].pop("tie_word_embeddings") is tied
        (folder / "config.json").write_text(json.dumps(config))
        target = load_target(open_checkpoint(folder))
        assert mx.array_equal(logits(target), logits(load_target(open_checkpoint(plain)))), tied
        assert target.config["text_config"].get("tie_word_embeddings", False) is tied
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))  # the files contradict it
    assert mx.array_equal(logits(load_target(open_checkpoint(folder))), logits(target))


def test_chat_templates_in_other_places(raw_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    plain = raw_checkpoint("qwen3_5")
    one, two = "one {{ messages[0].content }}", "two {{ messages[0].content }}"
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    cases: list[tuple[str, dict[str, object], dict[str, str], str, str]] = [
        # name, tokenizer_config.json, other files, the prompt without tools, the prompt with tools
        ("legacy", {}, {"chat_template.json": json.dumps({"chat_template": one})}, "one hi", "one hi"),
        ("jinja", {}, {"chat_template.jinja": two, "chat_template.json": '{"chat_template": "x"}'}, "two hi", "two hi"),
        ("inner", {"chat_template": two}, {"chat_template.json": '{"chat_template": "x"}'}, "two hi", "two hi"),
        ("named", {"chat_template": [{"name": "tool_use", "template": two}, {"name": "chat", "template": one}]}, {},
         "one hi", "two hi"),
        ("alone", {"chat_template": [{"name": "tool_use", "template": two}]}, {}, "two hi", "two hi"),
        ("default", {"chat_template": [{"name": "a", "template": two}, {"name": "default", "template": one}]}, {},
         "one hi", "one hi"),
        ("files", {}, {"additional_chat_templates/chat.jinja": one, "additional_chat_templates/tool_use.jinja": two},
         "one hi", "two hi"),
        ("beside", {"chat_template": one}, {"additional_chat_templates/tool_use.jinja": two}, "one hi", "two hi"),
    ]  # fmt: skip
    for name, stated, files, without, with_tools in cases:
        folder = Path(shutil.copytree(plain, tmp_path / name))
        config = json.loads((folder / "tokenizer_config.json").read_text())
        del config["chat_template"]
        (folder / "tokenizer_config.json").write_text(json.dumps(config | stated))
        for file, text in files.items():
            (folder / file).parent.mkdir(exist_ok=True)
            (folder / file).write_text(text)
        if name == "files":
            (folder / "additional_chat_templates" / "._chat.jinja").write_bytes(APPLE_DOUBLE + b"\xff")
        tokenizer = load_tokenizer(folder)
        assert tokenizer.apply_chat_template(MESSAGES, tokenize=False) == without, name
        assert tokenizer.apply_chat_template(MESSAGES, tools=tools, tokenize=False) == with_tools, name
    folder = tmp_path / "files"
    shutil.rmtree(folder / "additional_chat_templates")
    assert not load_tokenizer(folder).has_chat_template, "where there is none, none is made up"
