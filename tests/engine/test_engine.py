"""The engine's public side: prompts, turns, seeds, memory, and models without a head."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models import llama

from mlxmtp import CheckpointError, Engine, GenerationOptions, OptionError, PromptError, load
from tests import tiny
from tests.running import generated, reference

PROMPT = "Write a class."


@pytest.fixture(scope="module")
def engine(raw_checkpoint: Callable[..., Path]) -> Engine:
    return load(raw_checkpoint("qwen3_5", dtype="float32"))


@pytest.fixture(scope="module")
def trained() -> Engine:
    return load()


@pytest.mark.parametrize(
    "sampling",
    [
        GenerationOptions(temperature=0.7, seed=1),
        GenerationOptions(temperature=1.0, top_p=0.9, seed=2),
        GenerationOptions(temperature=1.3, top_k=20, seed=2**63 + 5),
        GenerationOptions(temperature=1.0, min_p=0.05, top_p=0.95, top_k=50, seed=0),
    ],
    ids=str,
)
def test_a_seed_gives_the_same_tokens_at_any_depth(trained: Engine, sampling: GenerationOptions) -> None:
    plain = trained.generate(PROMPT, replace(sampling, max_tokens=40, depth=0))
    assert plain.tokens != trained.generate(PROMPT, GenerationOptions(max_tokens=40, depth=0)).tokens, (
        "as good as greedy"
    )
    for depth in range(1, 7):
        run = trained.generate(PROMPT, replace(sampling, max_tokens=40, depth=depth))
        assert run.tokens == plain.tokens, f"depth {depth}"
        assert run.stats.accepted > 0


@pytest.mark.parametrize("verify", ["token", "block"])
def test_rejection_sampling_with_a_seed_repeats_itself(trained: Engine, verify: Any) -> None:
    """At a fixed depth: auto's choices follow the clock, and here change what is drawn."""
    options = GenerationOptions(temperature=1.0, seed=3, max_tokens=30, depth=3, verify=verify)
    runs = [trained.generate(PROMPT, options).tokens for _ in range(2)]
    assert runs[0] == runs[1]


def test_without_a_seed_turns_differ(trained: Engine) -> None:
    runs = [tuple(trained.generate(PROMPT, GenerationOptions(temperature=1.5, max_tokens=30)).tokens) for _ in range(3)]
    assert len(set(runs)) == 3


def test_a_turn_is_the_sum_of_its_chunks(trained: Engine) -> None:
    chunks = list(trained.stream(PROMPT, GenerationOptions(max_tokens=40)))
    whole = trained.generate(PROMPT, GenerationOptions(max_tokens=40))
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert [token for chunk in chunks for token in chunk.tokens] == whole.tokens
    assert [chunk.finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    for count, chunk in enumerate(chunks, start=1):
        stats = chunk.stats
        assert (stats.rounds, stats.evaluations) == (count, count + 2 * stats.timed_rounds)
        assert stats.tokens_per_round == stats.tokens / count
    assert stats.tokens == len(whole.tokens)


def test_kinds_of_prompt(trained: Engine) -> None:
    text = f"<|im_start|>user\n{PROMPT}<|im_end|>\n<|im_start|>assistant\n"
    expected = trained.generate(PROMPT, GenerationOptions(max_tokens=20)).tokens
    assert trained.generate(text, GenerationOptions(max_tokens=20), raw=True).tokens == expected
    assert trained.generate([{"role": "user", "content": PROMPT}], GenerationOptions(max_tokens=20)).tokens == expected
    assert trained.generate(trained.tokenizer.encode(text), GenerationOptions(max_tokens=20)).tokens == expected


def test_stop_strings(trained: Engine) -> None:
    whole = trained.generate("def add(a, b):\n", GenerationOptions(max_tokens=60), raw=True)
    assert len(whole.text) > 40
    for at in (5, 17, 30):
        stop = whole.text[at : at + 6]
        for depth in (0, 1, 3, 6):
            run = trained.generate(
                "def add(a, b):\n", GenerationOptions(max_tokens=60, depth=depth, stop=["never", stop]), raw=True
            )
            assert (run.text, run.finish_reason) == (whole.text[: whole.text.find(stop)], "stop")
            assert run.tokens == whole.tokens[: len(run.tokens)]


@pytest.mark.parametrize("depth", [0, 3])
def test_the_start_of_a_stop_string_is_text_at_the_token_limit(trained: Engine, depth: int) -> None:
    options = GenerationOptions(max_tokens=20, depth=depth)
    whole = trained.generate("def add(a, b):\n", options, raw=True)
    held = trained.generate("def add(a, b):\n", replace(options, stop=whole.text[-4:] + "never"), raw=True)
    assert (held.text, held.finish_reason) == (whole.text, "length")


@pytest.mark.parametrize("depth", [0, 3])
def test_a_closed_stream_stops(engine: Engine, depth: int) -> None:
    stream = engine.stream([5, 6, 7], GenerationOptions(max_tokens=100, depth=depth))
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert next(stream, None) is None


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("depth", [0, 1, 5])
def test_the_budget_is_kept_to_the_token(engine: Engine, depth: int, count: int) -> None:
    run = engine.generate([5, 6, 7], GenerationOptions(max_tokens=count, depth=depth))
    assert (len(run.tokens), run.finish_reason) == (count, "length")


def test_the_context_ends_a_turn(raw_checkpoint: Callable[..., Path]) -> None:
    small = load(raw_checkpoint("qwen3_5", dtype="float32", positions=16))
    run = small.generate(list(range(3, 13)), GenerationOptions(max_tokens=100))
    assert (len(run.tokens), run.finish_reason) == (6, "length")
    with pytest.raises(PromptError, match="the prompt has 16 tokens, the model's context 16"):
        small.generate(list(range(3, 19)))


@pytest.mark.parametrize("prompt", ["", [], [1, "two"], [-1], [10**9]], ids=str)
def test_bad_prompts_are_refused_at_once(engine: Engine, prompt: Any) -> None:
    with pytest.raises(PromptError):
        engine.stream(prompt)


def test_a_bad_argument_is_refused_at_once(engine: Engine) -> None:
    with pytest.raises(OptionError, match="prefill_tokens is 0; expected a whole number of at least 1"):
        engine.stream([5, 6], prefill_tokens=0)


def test_a_model_without_a_head_decodes_plainly(tmp_path: Path) -> None:
    """Another architecture altogether: mlx-lm loads it, mlxmtp runs it plainly and says why."""
    config = {
        "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128,
        "num_attention_heads": 4, "rms_norm_eps": 1e-6, "vocab_size": 300, "tie_word_embeddings": True,
    }  # fmt: skip
    mx.random.seed(0)
    model = llama.Model(llama.ModelArgs.from_dict(config))
    mx.save_safetensors(str(tmp_path / "model.safetensors"), dict(tree_flatten(model.parameters())))
    (tmp_path / "config.json").write_text(json.dumps(config))
    tiny.tokenizer(tmp_path, 300)
    plain = load(tmp_path)
    assert (plain.head, plain.plain_because) == (None, "no MTP head family for model type 'llama' yet")
    assert generated(plain, [5, 6, 7], 40, depth=0) == reference(plain, [5, 6, 7], 40)
    with pytest.raises(OptionError, match="no MTP head family"):
        plain.stream([5, 6, 7], GenerationOptions(depth=1))


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    folder = tiny.raw_checkpoint(tmp_path / "model", "qwen3_5")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"no tokenizer; expected one of tokenizer\.json"):
        load(folder)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="its tokenizer cannot be read"):
        load(folder)


def test_loading_holds_one_copy(raw_checkpoint: Callable[..., Path]) -> None:
    """Big enough that a second copy of anything would show; per expert, so that stacking is in it too."""
    options = {"dtype": "float32", "experts": "per_expert", "hidden": 256, "mlp": 512, "moe_mlp": 256, "vocab": 4096}
    folder = raw_checkpoint("qwen3_5_moe", num_experts=16, **options)
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    engine = load(folder)
    assert engine.mtp is not None
    weights = {id(a): a.nbytes for m in (engine.target.model, engine.mtp) for _, a in tree_flatten(m.parameters())}
    largest = max(weights.values())
    assert mx.get_active_memory() - before <= sum(weights.values()) + 4096
    assert mx.get_peak_memory() - before <= sum(weights.values()) + 2 * largest


def test_peak_memory_with_mtp_is_plain_and_what_mtp_needs(trained: Engine) -> None:
    prompt = trained.tokenizer.encode(Path(__file__).read_text())[:300]
    plain = trained.generate(prompt, GenerationOptions(max_tokens=40, depth=0)).stats.peak_memory_bytes
    depth = 3
    with_mtp = trained.generate(prompt, GenerationOptions(max_tokens=40, depth=depth)).stats.peak_memory_bytes
    config = trained.target.text_config
    heads, key, value = (config[f"linear_{n}"] for n in ("num_value_heads", "key_head_dim", "value_head_dim"))
    states = (depth + 1) * config["num_hidden_layers"] * heads * key * value * 4
    head_cache = 2 * 512 * config["num_key_value_heads"] * config["head_dim"] * 2
    logits = 2 * (depth + 1) * config["vocab_size"] * 4
    hidden = len(prompt) * config["hidden_size"] * 2 * 4
    assert with_mtp - plain <= states + head_cache + logits + hidden
