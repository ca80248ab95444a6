"""`mlxmtp generate` with a real engine and a tiny random model: its output, and every kind of bad input."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest

from tests.cli.conftest import Ran, assert_refused

GENERATE = ("generate", "--prompt", "hello", "--max-tokens", "24")


@pytest.fixture(scope="module")
def model(raw_checkpoint: Callable[..., Path]) -> Path:
    return raw_checkpoint("qwen3_5", shards=2)


@pytest.fixture
def copy(model: Path, tmp_path: Path) -> Path:
    """A checkpoint to damage."""
    return Path(shutil.copytree(model, tmp_path / "model"))


@pytest.fixture
def cli(main_: Callable[..., Ran]) -> Callable[..., Ran]:
    """cli(folder, *options): `mlxmtp generate` on that model."""
    return lambda folder, *options: main_(*GENERATE, "--model", str(folder), *options)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param([], marks=pytest.mark.exhaustive),
        pytest.param(["--raw"], marks=pytest.mark.exhaustive),
        ["--temp", "0.8", "--top-p", "0.9", "--top-k", "50", "--min-p", "0.01", "--seed", "7"],
    ],
    ids=["greedy", "raw", "seeded"],
)
def test_mtp_changes_no_token(cli, model, options):
    plain = json.loads(cli(model, *options, "--no-mtp", "--json").out)
    assert plain["plain_because"]
    assert (len(plain["tokens"]), plain["finish_reason"]) == (24, "length")
    for depth in ("1", "3"):
        answer = json.loads(cli(model, *options, "--depth", depth, "--json").out)
        assert (answer["tokens"], answer["text"]) == (plain["tokens"], plain["text"])
        assert answer["stats"]["drafted"] > 0
        assert answer["head"]


def test_the_stream_is_the_text(cli, model):
    text = json.loads(cli(model, "--json").out)["text"]
    ran = cli(model)
    assert (ran.code, ran.out) == (0, text if text.endswith("\n") else text + "\n")
    assert "MTP     " in ran.err
    assert "24 tokens" in ran.err


def test_a_head_declared_and_not_there(cli, raw_checkpoint):
    headless = raw_checkpoint("qwen3_5", head=False)
    ran = cli(headless)
    assert ran.code == 0
    assert "MTP     off: " in ran.err
    ran = cli(headless, "--depth", "2")
    assert_refused(ran, "depth is 2", "no MTP head")


def damage_nothing_there(folder: Path) -> None:
    shutil.rmtree(folder)


def damage_not_a_model(folder: Path) -> None:
    shutil.rmtree(folder)
    (folder / "photos").mkdir(parents=True)


def damage_truncated_shard(folder: Path) -> None:
    shard = shards(folder)[0]
    shard.write_bytes(shard.read_bytes()[:-100])


def damage_missing_shard(folder: Path) -> None:
    shards(folder)[-1].unlink()


def damage_architecture(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "crystal_ball"
    (folder / "config.json").write_text(json.dumps(config))


def damage_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def damage_head_shape(folder: Path) -> None:
    rewrite(folder, "mtp.fc.weight", lambda fc: fc[:, :-8])


def damage_into_dspark(folder: Path) -> None:
    rewrite(folder, "mtp.fc.weight", lambda fc: fc, rename="mtp.0.main_proj.weight")


def damage_numbers(folder: Path) -> None:
    rewrite(folder, "model.language_model.norm.weight", lambda norm: mx.full(norm.shape, mx.nan, norm.dtype))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (damage_nothing_there, "no such folder"),
        (damage_not_a_model, "config.json"),
        (damage_config, "config.json"),
        (damage_truncated_shard, ".safetensors"),
        (damage_missing_shard, ".safetensors"),
        (damage_architecture, "crystal_ball"),
        (damage_head_shape, "fc.weight"),
        (damage_into_dspark, "DSpark"),
        (damage_numbers, "not finite"),
    ],
)
def test_a_bad_model_is_refused(cli, copy, damage, said):
    damage(copy)
    assert_refused(cli(copy), said)


def test_a_broken_head_does_not_stop_plain_decoding(cli, copy):
    damage_head_shape(copy)
    assert cli(copy, "--no-mtp").code == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--prompt", ""], ["the prompt is empty"]),
        (["--prompt", "hello " * 2000], ["context"]),
        (["--stop", ""], ["stop string is empty"]),
    ],
    ids=["empty", "too long", "stop"],
)
def test_bad_input_that_only_the_model_can_judge(cli, model, options, said):
    assert_refused(cli(model, *options), *said)


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def rewrite(folder: Path, name: str, change: Callable[[mx.array], mx.array], rename: str = "") -> None:
    """Change one tensor of a checkpoint on disk, and its name."""
    for shard in shards(folder):
        tensors = mx.load(str(shard))
        if name in tensors:
            tensors[rename or name] = change(tensors.pop(name))
            mx.eval(tensors)
            mx.save_safetensors(str(shard), tensors, {"format": "pt"})
            return
    raise KeyError(name)
