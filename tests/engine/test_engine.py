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
from tests.engine.kinds import TRAINED
from tests.grids import cases
from tests.running import generated, reference

PROMPT = "Write a class."


@pytest.fixture(scope="module")
def engine(raw_checkpoint: Callable[..., Path]) -> Engine:
    return load(raw_checkpoint("qwen3_5", dtype="float32"))


@pytest.fixture(scope="module")
def trained() -> Engine:
    """A small model whose head is right at every depth."""
    return load(TRAINED / "glm4_moe")


@pytest.fixture(scope="module")
def demo() -> Engine:
    return load()


SAMPLINGS = (
    GenerationOptions(temperature=0.7, seed=1),
    GenerationOptions(temperature=1.0, top_p=0.9, seed=2),
    GenerationOptions(temperature=1.3, top_k=20, seed=2**63 + 5),
    GenerationOptions(temperature=1.0, min_p=0.05, top_p=0.95, top_k=50, seed=0),
)


@pytest.mark.parametrize("model", cases(["trained", "demo"], default=["trained"]))
def test_a_seed_gives_the_same_tokens_at_any_depth(request: pytest.FixtureRequest, model: str) -> None:
    engine: Engine = request.getfixturevalue(model)
    greedy = engine.generate(PROMPT, GenerationOptions(max_tokens=24, depth=0)).tokens
    for sampling in SAMPLINGS:
        plain = engine.generate(PROMPT, replace(sampling, max_tokens=24, depth=0))
        assert plain.tokens != greedy, f"as good as greedy: {sampling}"
        for depth in (1, 2, 5):
            run = engine.generate(PROMPT, replace(sampling, max_tokens=24, depth=depth))
            assert run.tokens == plain.tokens, f"depth {depth}: {sampling}"
            assert run.stats.accepted > 0


@pytest.mark.parametrize("verify", ["token", "block"])
def test_rejection_sampling_with_a_seed_repeats_itself(trained: Engine, verify: Any) -> None:
    """At a fixed depth: auto's choices follow the clock, and here change what is drawn."""
    options = GenerationOptions(temperature=1.0, seed=3, max_tokens=30, depth=3, verify=verify)
    runs = [trained.generate(PROMPT, options) for _ in range(2)]
    assert runs[0].tokens == runs[1].tokens
    assert 0 < runs[0].stats.accepted < runs[0].stats.drafted


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


def test_stop_strings(demo: Engine) -> None:
    """With the demo, whose tokens have several characters: a stop string begins and ends inside a token."""
    options = GenerationOptions(max_tokens=14)
    whole = demo.generate("def add(a, b):\n", replace(options, depth=0), raw=True)
    assert len(whole.text) > 25
    for at, depth in ((5, 0), (5, 3), (17, 1)):
        stop = whole.text[at : at + 6]
        run = demo.generate("def add(a, b):\n", replace(options, depth=depth, stop=["never", stop]), raw=True)
        expected = (whole.text[: whole.text.find(stop)], "stop")
        assert (run.text, run.finish_reason) == expected, f"{stop!r}, depth {depth}"
        assert run.tokens == whole.tokens[: len(run.tokens)]


def test_a_raw_completion_has_no_thinking(demo: Engine) -> None:
    prompt, options = "def add(a, b):\n<think>", GenerationOptions(max_tokens=14, depth=0)
    whole = demo.generate(prompt, options, raw=True).text
    for raw in (True, False):
        given = prompt if raw else demo.tokenizer.encode(prompt)
        chunks = list(demo.stream(given, replace(options, stop=whole[5:11]), raw=raw))
        segments = [segment for chunk in chunks for segment in chunk.segments if segment.text]
        assert {segment.kind for segment in segments} == {"text" if raw else "thinking"}, raw
        shown = whole[: whole.find(whole[5:11])] if raw else whole
        assert "".join(segment.text for segment in segments) == shown, raw


def test_each_text_is_traced_to_the_draft_that_it_came_from(demo: Engine, trained: Engine) -> None:
    """Of each round: the texts of the accepted drafts in order, then that of the target's own token."""
    for engine in (demo, trained):
        chunks = list(
            engine.stream("def add(a, b):\n    return a\n" * 3, GenerationOptions(max_tokens=60, depth=3), raw=True)
        )
        for chunk in chunks:
            trace = chunk.trace
            assert "".join(text.text for text in trace.texts) == chunk.text
            if "\ufffd" in chunk.text or chunk.finish_reason:
                continue
            for depth in range(1, trace.accepted + 1):
                found = "".join(text.text for text in trace.texts if text.depth == depth)
                token = engine.tokenizer.decode([chunk.tokens[depth - 1]])
                assert found.strip() == token.strip()  # a space may be held back until the next token
        stats = chunks[-1].stats
        heads = [chunk.trace for chunk in chunks if not chunk.trace.from_lookup]
        assert sum(trace.accepted for trace in heads) == stats.accepted > 0
        assert sum(trace.drafted for trace in heads) == stats.drafted
    assert {text.depth for chunk in chunks for text in chunk.trace.texts} == {0, 1, 2, 3}


def test_the_start_of_a_stop_string_is_text_at_the_token_limit(trained: Engine) -> None:
    for depth in (0, 3):
        options = GenerationOptions(max_tokens=20, depth=depth)
        whole = trained.generate("def add(a, b):\n", options, raw=True)
        held = trained.generate("def add(a, b):\n", replace(options, stop=whole.text[-4:] + "never"), raw=True)
        assert (held.text, held.finish_reason) == (whole.text, "length"), f"depth {depth}"


def test_a_closed_stream_stops(engine: Engine) -> None:
    for depth in (0, 3):
        stream = engine.stream([5, 6, 7], GenerationOptions(max_tokens=100, depth=depth))
        next(stream)
        stream.close()  # type: ignore[attr-defined]
        assert next(stream, None) is None, f"depth {depth}"


def test_the_budget_is_kept_to_the_token(engine: Engine) -> None:
    for depth in (0, 1, 5):
        for count in (1, 2, 3, 7):
            run = engine.generate([5, 6, 7], GenerationOptions(max_tokens=count, depth=depth))
            assert (len(run.tokens), run.finish_reason) == (count, "length"), f"depth {depth}"


def test_the_context_ends_a_turn(raw_checkpoint: Callable[..., Path]) -> None:
    small = load(raw_checkpoint("qwen3_5", dtype="float32", positions=16))
    run = small.generate(list(range(3, 13)), GenerationOptions(max_tokens=100))
    assert (len(run.tokens), run.finish_reason) == (6, "length")
    with pytest.raises(PromptError, match="the prompt has 16 tokens, the model's context 16"):
        small.generate(list(range(3, 19)))


def test_bad_prompts_are_refused_at_once(engine: Engine) -> None:
    prompts: list[Any] = ["", [], [1, "two"], [-1], [10**9]]
    for prompt in prompts:
        with pytest.raises(PromptError):
            pytest.fail(f"taken: {prompt} {engine.stream(prompt)}")


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


def test_peak_memory_with_mtp_is_plain_and_what_mtp_needs(engine: Engine) -> None:
    prompt, depth = list(range(5, 275)), 3
    plain, with_mtp = (
        engine.generate(prompt, GenerationOptions(max_tokens=12, depth=each)).stats.peak_memory_bytes
        for each in (0, depth)
    )
    config = engine.target.text_config
    heads, key, value = (config[f"linear_{n}"] for n in ("num_value_heads", "key_head_dim", "value_head_dim"))
    states = (depth + 1) * config["num_hidden_layers"] * heads * key * value * 4
    head_cache = 2 * 512 * config["num_key_value_heads"] * config["head_dim"] * 4
    logits = 2 * (depth + 1) * config["vocab_size"] * 4
    hidden = len(prompt) * config["hidden_size"] * 2 * 4
    assert with_mtp - plain <= states + head_cache + logits + hidden
