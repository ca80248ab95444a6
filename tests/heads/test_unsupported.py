"""Models whose heads are not supported, or not there: recognised, answered with the reason, and decoded plainly."""

import itertools
from pathlib import Path

import mlx.core as mx
import mlx_lm
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models import gemma3_text, mamba, minimax

from mlxmtp import load
from mlxmtp.checkpoints import Checkpoint, TensorInfo
from mlxmtp.cli import main
from mlxmtp.heads import NoHeadError, resolve_head
from mlxmtp.heads.loading import UNRELEASED
from tests import tiny
from tests.running import generated, prefilled, reference, rounds

HEADS = {  # model type: layers of the trunk, a tensor of the head
    "minimax_m3_vl": (4, "language_model.model.mtp.layers.0.enorm.weight"),
    "hy_v3": (4, "model.layers.4.final_layernorm.weight"),
}


def checkpoint(model_type: str, tensors: list[str], **config: object) -> Checkpoint:
    info = TensorInfo(Path("model.safetensors"), "BF16", (8, 8), 0, 128)
    return Checkpoint(Path("model"), {"model_type": model_type, **config}, dict.fromkeys(tensors, info))


@pytest.mark.parametrize("model_type", HEADS)
def test_a_head_of_another_family_is_seen(model_type: str) -> None:
    layers, name = HEADS[model_type]
    trunk = ["model.embed_tokens.weight", "model.layers.3.mlp.up_proj.weight"]
    with pytest.raises(NoHeadError) as said:
        resolve_head(checkpoint(model_type, [*trunk, name], num_hidden_layers=layers))
    assert f"no MTP head family for model type '{model_type}' yet" in str(said.value)
    assert f"the files hold 1 tensors of a head ({name}, ...)" in str(said.value)
    with pytest.raises(NoHeadError) as without:
        resolve_head(checkpoint(model_type, trunk, num_hidden_layers=layers))
    assert str(without.value) == f"no MTP head family for model type '{model_type}' yet"


@pytest.mark.parametrize("model_type", UNRELEASED)
def test_a_declared_head_that_was_not_released_is_said(model_type: str) -> None:
    declared = {"num_hidden_layers": 4, "num_mtp_modules": 3}
    with pytest.raises(NoHeadError) as said:
        resolve_head(checkpoint(model_type, ["lm_head.weight"], text_config=declared))
    assert str(said.value) == (
        f"no MTP head family for model type '{model_type}' yet; the config declares a head (num_mtp_modules), "
        "but the files do not hold it: its makers have not released it"
    )


def test_trunks_that_mlx_lm_has_not_are_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Their heads do not matter then, however they are stored."""
    arrays = {"model.embed_tokens.weight": mx.zeros((24, 8)), "mtp.layers.0.enorm.weight": mx.zeros((8,))}
    tiny.save_weights(tmp_path, arrays | {"model.layers.2.enorm.weight": mx.zeros((8,))}, made_by="pt")
    tiny.tokenizer(tmp_path, 24)
    for kind in ("qwen4_exp", "glm5_next", "deepseek_v4", "hy_v3", "hy_v4", "step3p7", "mimo_v2"):
        sizes = {"num_hidden_layers": 2, "hidden_size": 8, "vocab_size": 24, "num_nextn_predict_layers": 1}
        tiny.write_json(tmp_path / "config.json", {"model_type": kind} | sizes)
        assert main(["generate", "--model", str(tmp_path), "--prompt", "x"]) == 2, kind
        expected = f"mlxmtp: {tmp_path}: mlx-lm has no model type '{kind}'; another version of it may\n"
        assert capsys.readouterr().err == expected


def test_dspark_stages_are_named() -> None:
    """By each of their parts: V4's and V4.1's names of the Markov head differ, and files may hold one stage alone."""
    for part in (
        "0.main_proj",
        "0.main_norm",
        "2.markov_head.markov_w1",
        "2.markov_head.embed",
        "2.confidence_head.proj",
    ):
        tensors = [f"mtp.{part}.weight", "mtp.1.attn_norm.weight"]
        with pytest.raises(NoHeadError, match=r"'deepseek_v41' yet; the mtp.* tensors are DSpark stages"):
            resolve_head(checkpoint("deepseek_v41", tensors, num_hidden_layers=4))


def minimax_m2(folder: Path, *, head: bool) -> Path:
    config = {
        "model_type": "minimax_m2", "hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 512, "num_experts_per_tok": 2, "num_local_experts": 4,
        "shared_intermediate_size": 0, "num_hidden_layers": 2, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
        "rotary_dim": 16, "vocab_size": 288, "use_mtp": True, "num_mtp_modules": 3,
    }  # fmt: skip
    mx.random.seed(0)
    weights = dict(tree_flatten(minimax.Model(minimax.ModelArgs.from_dict(config)).parameters()))
    if head:
        weights["model.layers.2.enorm.weight"] = mx.ones((64,))
    tiny.save_weights(folder, weights, made_by="pt")
    tiny.write_json(folder / "config.json", config)
    tiny.tokenizer(folder, 288)
    return folder


def test_minimax_m2_declares_a_head_that_is_not_there(tmp_path: Path) -> None:
    engine = load(minimax_m2(tmp_path, head=False))
    assert engine.head is None
    assert "the files do not hold it: its makers have not released it" in engine.plain_because
    assert generated(engine, [5, 6, 7], 40, depth=0) == reference(engine, [5, 6, 7], 40)


def test_a_trunk_loads_without_a_head_that_mlx_lm_stumbles_over(tmp_path: Path) -> None:
    """mlx-lm keeps the layers past a MiniMax trunk's last, and then finds no place for them."""
    folder = minimax_m2(tmp_path, head=True)
    with pytest.raises(ValueError, match="parameters not in model"):
        mlx_lm.utils.load_model(folder)
    engine = load(folder)
    assert "the files hold 1 tensors of a head (model.layers.2.enorm.weight, ...)" in engine.plain_because
    assert generated(engine, [5, 6, 7], 40, depth=0) == reference(engine, [5, 6, 7], 40)


def test_a_model_of_another_shape_decodes_plainly(tmp_path: Path) -> None:
    """Mamba has no `model.norm` to take hidden states from."""
    config = {
        "model_type": "mamba", "vocab_size": 288, "hidden_size": 64, "intermediate_size": 128, "state_size": 8,
        "num_hidden_layers": 2, "conv_kernel": 4, "use_bias": False, "use_conv_bias": True, "time_step_rank": 4,
    }  # fmt: skip
    mx.random.seed(0)
    weights = dict(tree_flatten(mamba.Model(mamba.ModelArgs.from_dict(config)).parameters()))
    tiny.save_weights(tmp_path, weights, made_by="mlx")
    tiny.write_json(tmp_path / "config.json", config)
    tiny.tokenizer(tmp_path, 288)
    engine = load(tmp_path)
    assert engine.plain_because == "no MTP head family for model type 'mamba' yet"
    assert generated(engine, [5, 6, 7], 40, depth=0) == reference(engine, [5, 6, 7], 40)


def test_windows_of_another_family_decode_plainly(tmp_path: Path) -> None:
    """Gemma 3 has windows and no head: past the wrap, a row queued ahead is taken back when the turn ends."""
    config = {
        "model_type": "gemma3_text", "hidden_size": 64, "num_hidden_layers": 3, "intermediate_size": 64,
        "num_attention_heads": 4, "head_dim": 16, "rms_norm_eps": 1e-6, "vocab_size": 288, "num_key_value_heads": 1,
        "sliding_window": 8, "sliding_window_pattern": 3, "query_pre_attn_scalar": 16,
    }  # fmt: skip
    mx.random.seed(0)
    weights = dict(tree_flatten(gemma3_text.Model(gemma3_text.ModelArgs.from_dict(config)).parameters()))
    tiny.save_weights(tmp_path, {name: w + 0.3 for name, w in weights.items()}, made_by="mlx")
    tiny.write_json(tmp_path / "config.json", config)
    tiny.tokenizer(tmp_path, 288)
    engine = load(tmp_path)
    assert engine.target.reversible
    sequence = prefilled(engine, [5, 6, 7], 0)
    first = [token for one in itertools.islice(rounds(engine, sequence, 40, 0), 20) for token in one.tokens]
    assert first == reference(engine, [5, 6, 7], 20)
    before = list(sequence.tokens)
    sequence.prefill([9, 8, 7], 2)
    second = [token for one in rounds(engine, sequence, 20, 0) for token in one.tokens]
    assert second == reference(engine, [*before, 9, 8, 7], 20)
