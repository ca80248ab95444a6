"""`--draft-vocab`: drafts from some tokens only, the text from all of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from tokenizers import Tokenizer, models

from mlxmtp import Engine, GenerationOptions, OptionError, load
from mlxmtp.decoding.depth import FixedDepth
from mlxmtp.decoding.draft import MTPChain, narrowed_chain
from mlxmtp.decoding.loop import generate, never_stop
from mlxmtp.decoding.sampler import Sampler
from mlxmtp.decoding.sequence import Sequence
from mlxmtp.engine.depth_store import file_for
from mlxmtp.engine.loading import draft_tokens
from mlxmtp.heads.draft_output import DraftOutput
from mlxmtp.heads.narrowed import DraftVocabulary
from tests.grids import cases

FEW = [3, 40, 41, 97, 150]
PROMPT = list(range(5, 40))


@pytest.mark.parametrize("kind", ["whole", "with a bias", "embedding", 4, 8])
def test_the_rows_are_the_matrixs_own(kind: str | int) -> None:
    """To the bit; of all other tokens, -inf."""
    mx.random.seed(1)
    if kind == "embedding":
        matrix: Any = nn.Embedding(200, 64)
        whole = matrix.as_linear
    else:
        matrix = whole = nn.Linear(64, 200, bias=kind == "with a bias")
        if isinstance(kind, int):
            matrix = whole = matrix.to_quantized(bits=kind, group_size=32)
    states = mx.random.normal((2, 3, 64))
    found, expected = DraftOutput(matrix, FEW)(states), whole(states)
    assert found.shape == expected.shape
    assert mx.array_equal(found[..., mx.array(FEW)], expected[..., mx.array(FEW)])
    others = mx.array([token for token in range(200) if token not in FEW])
    assert mx.all(found[..., others] == -mx.inf)


MODELS = ("qwen3_5", "glm4_moe_lite", "deepseek_v3")


@pytest.fixture(params=cases(MODELS, default=MODELS[:2]))
def model(request: pytest.FixtureRequest, raw_checkpoint: Callable[..., Path], nextn_checkpoint: Any) -> Path:
    if request.param == "qwen3_5":
        return raw_checkpoint("qwen3_5", dtype="float32")
    found: Path = nextn_checkpoint(request.param)
    return found


@pytest.fixture(scope="module")
def trained() -> Engine:
    """The bundled model."""
    return load()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tokens.json"
    path.write_text(json.dumps(FEW))
    return path


def test_the_text_is_as_without_and_the_drafts_are_of_the_vocabulary(model: Path, file: Path) -> None:
    engine, whole = load(model, draft_vocab=file), load(model)
    assert engine.draft_tokens
    assert set(FEW) <= set(engine.draft_tokens)
    for sampling in (GenerationOptions(), GenerationOptions(temperature=0.9, seed=3)):
        assert_narrow(engine, whole, sampling)
    files = [file_for(each.facts, each.identity) for each in (engine, whole)]
    assert files[0] != files[1], "what is learned of one is not of the other"


def assert_narrow(engine: Engine, whole: Engine, sampling: GenerationOptions) -> None:
    plain = whole.generate(PROMPT, replace(sampling, max_tokens=16, depth=0)).tokens
    assert engine.generate(PROMPT, replace(sampling, max_tokens=16, depth=3)).tokens == plain
    sequence = Sequence(engine.target, engine.mtp)
    sequence.prefill(PROMPT)
    drafts = MTPChain(engine.mtp).propose(sequence, 6, Sampler(sampling.sampling)).tokens[0].tolist()  # type: ignore[arg-type]
    assert set(drafts) <= set(engine.draft_tokens or ())


def test_rejection_sampling_takes_drafts_of_a_part(model: Path, file: Path) -> None:
    """Tokens outside the vocabulary come as corrections and bonus tokens."""
    engine = load(model, draft_vocab=file)
    for verify in ("token", "block"):
        options = GenerationOptions(temperature=1.0, seed=1, max_tokens=16, depth=2, verify=verify)  # type: ignore[arg-type]
        assert set(engine.generate(PROMPT, options).tokens) - set(engine.draft_tokens or ()), verify


def test_a_number_takes_the_most_frequent_and_the_special_ones(trained: Engine) -> None:
    tokenizer, vocabulary = trained.tokenizer, trained.target.output["weight"].shape[0]
    found = draft_tokens(300, tokenizer, vocabulary)
    special = {*tokenizer.added_tokens_decoder, *tokenizer.eos_token_ids}
    assert set(range(300)) - special <= set(found) | special
    assert special <= set(found)
    assert len(found) <= 300 + len(special)
    assert draft_tokens("1000000", tokenizer, vocabulary) == list(range(min(len(tokenizer), vocabulary)))


def test_of_a_unigram_model_the_likeliest() -> None:
    model = models.Unigram([("<unk>", 0.0), ("a", -5.0), ("b", -1.0), ("c", -3.0)], unk_id=0)
    tokenizer = SimpleNamespace(backend_tokenizer=Tokenizer(model), added_tokens_decoder={}, eos_token_ids=set())
    assert draft_tokens(3, tokenizer, 4) == [0, 2, 3]


@pytest.mark.parametrize("text", ["7\n3\n3\n", "[7, 3]", " 3 7 "])
def test_files_of_ids(tmp_path: Path, trained: Engine, text: str) -> None:
    (tmp_path / "ids").write_text(text)
    vocabulary = trained.target.output["weight"].shape[0]
    special = {*trained.tokenizer.added_tokens_decoder, *trained.tokenizer.eos_token_ids}
    assert set(draft_tokens(tmp_path / "ids", trained.tokenizer, vocabulary)) == {3, 7} | special


def test_a_file_that_will_not_do(tmp_path: Path, trained: Engine) -> None:
    for content, told in (
        (b"", "there are none"),
        (b"[]", "there are none"),
        (b"[1, 2", "Expecting"),
        (b"one two", "invalid literal"),
        (b"[1, 999999]", "999999 is no token of this model"),
        (b"[1, -2]", "-2 is no token"),
        (b"[1, true]", "True is no token"),
        (b"\xff\xfe", "it is no text"),
    ):
        (tmp_path / "ids").write_bytes(content)
        with pytest.raises(OptionError, match=told):
            pytest.fail(f"{content!r} gives {draft_tokens(tmp_path / 'ids', trained.tokenizer, 1000)}")


@pytest.mark.parametrize(("asked", "told"), [(0, "at least 1 token"), (-3, "at least 1 token"), ("no/file", "No such")])
def test_nothing_to_draft(trained: Engine, asked: Any, told: str) -> None:
    with pytest.raises(OptionError, match=told):
        load(trained.path, draft_vocab=asked)


def test_without_a_head_there_is_nothing_to_narrow(trained: Engine, file: Path) -> None:
    with pytest.raises(OptionError, match="a draft vocabulary is for a head, and there is none: MTP was switched off"):
        load(trained.path, mtp=False, draft_vocab=file)


def test_auto_drafts_from_a_narrowed_vocabulary_and_writes_the_same(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("FIRST_TOKENS", 64), ("MAX_OTHERS", 16), ("MIN_SAVING", 0.0)):
        monkeypatch.setattr(f"mlxmtp.heads.narrowed.{name}", value)
    assert load(model, draft_vocab="full").narrowed is None
    engine = load(model)
    assert engine.narrowed
    engine.narrowed.vocabulary.add(PROMPT)
    chain = narrowed_chain(engine.mtp, engine.narrowed)
    for fields in ({}, {"temperature": 0.9, "seed": 3}, {"temperature": 0.9, "verify": "block"}):
        options = GenerationOptions(**fields)  # type: ignore[arg-type]
        sampler, sequence = Sampler(options.sampling, options.verify), Sequence(engine.target, engine.mtp)
        sequence.prefill(PROMPT)
        rounds = list(generate(engine.target, chain, sequence, sampler, FixedDepth(3), never_stop, 24))
        assert any(one.narrowed for one in rounds), fields
        if "verify" not in fields:
            plain = engine.generate(PROMPT, replace(options, max_tokens=24, depth=0)).tokens
            assert [token for one in rounds for token in one.tokens][: len(plain)] == plain, fields


def test_the_first_rows_and_those_that_occurred() -> None:
    """The newest stay, the special ones too; all logits are the matrix's own."""
    matrix = nn.Linear(64, 200).to_quantized(bits=4, group_size=32)
    vocabulary = DraftVocabulary(32, [190])
    output, states = DraftOutput(matrix, vocabulary.others, vocabulary.first), mx.random.normal((1, 2, 64))
    vocabulary.add([3, 100, 77, 100])
    assert (vocabulary.others, len(vocabulary)) == ([190, 100, 77], 35)
    output.choose(vocabulary.others)
    found, expected = output(states), matrix(states)
    inside = mx.array([token for token in range(200) if token in vocabulary])
    assert mx.array_equal(found[..., inside], expected[..., inside])
    assert mx.sum(found > -mx.inf).item() == 2 * 35
