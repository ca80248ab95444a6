"""`inspect --try-head`: the convention that a head was trained with wins, and trying changes nothing."""

import json
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import pytest

from mlxmtp import load
from mlxmtp.cli import main
from mlxmtp.engine import conventions
from mlxmtp.engine.conventions import try_conventions
from mlxmtp.errors import HeadError, PromptError
from mlxmtp.heads.head import CONVENTIONS
from mlxmtp.targets import matrix_rows
from tests import tiny
from tests.running import generated

pytestmark = pytest.mark.exhaustive

TEXT = "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. " * 2


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a random head every token takes a round, so few starts and tokens are enough."""
    monkeypatch.setattr(conventions, "STARTS", 2)
    monkeypatch.setattr(conventions, "TOKENS", 4)


def test_every_convention_is_tried_and_the_default_comes_first(raw_checkpoint: Callable[..., Path]) -> None:
    engine = load(raw_checkpoint("qwen3_5", dtype="float32", vocab=16))
    before = generated(engine, [5, 6, 7], 12, depth=3)
    found = list(try_conventions(engine, [3 + i % 13 for i in range(40)]))
    assert [one.convention for one in found] == [vars(convention) for convention in CONVENTIONS]
    assert [one.default for one in found] == [True, False, False, False]
    for one in found:
        assert one.tokens_per_round == 1 + sum(one.acceptance)
        assert list(one.acceptance) == sorted(one.acceptance, reverse=True)
    assert engine.mtp.convention == CONVENTIONS[0]
    assert engine.target.hidden_at == "post"
    assert generated(engine, [5, 6, 7], 12, depth=3) == before


def test_conventions_differ_in_hidden_states(raw_checkpoint: Callable[..., Path]) -> None:
    engine = load(raw_checkpoint("qwen3_5", dtype="float32", vocab=16))
    ids, logits, recycled = mx.array([[5, 6, 7, 8]]), {}, {}
    for convention in CONVENTIONS:
        engine.mtp.convention, engine.target.hidden_at = convention, convention.fed
        _, hidden = engine.target.forward(ids[:, :-1], engine.target.make_cache())
        states = engine.mtp(hidden, ids[:, 1:], engine.mtp.make_cache([]))
        logits[convention], recycled[convention] = engine.mtp.logits(states), engine.mtp.next_hidden(states)
    post, pre_recycled, pre_fed, _ = CONVENTIONS
    assert mx.array_equal(logits[post], logits[pre_recycled]), "what is recycled is the next depth's"
    assert float(mx.abs(recycled[post] - recycled[pre_recycled]).max()) > 0.1
    assert float(mx.abs(logits[post] - logits[pre_fed]).max()) > 0.01


def test_every_convention_is_exact(raw_checkpoint: Callable[..., Path]) -> None:
    """A convention changes the drafts, never the tokens."""
    engine = load(raw_checkpoint("qwen3_5", dtype="float32", vocab=16))
    expected = generated(engine, [5, 6, 7], 30, depth=0)
    for convention in CONVENTIONS:
        engine.mtp.convention, engine.target.hidden_at = convention, convention.fed
        assert generated(engine, [5, 6, 7], 30, depth=3) == expected, convention


def test_the_convention_of_training_wins_clearly(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head that was trained on states after the norm, whose weights are moved far from 1: all else takes it back."""
    monkeypatch.setattr(conventions, "STARTS", 4)
    monkeypatch.setattr(conventions, "TOKENS", 20)
    engine = load(Path(__file__).parent.parent / "trained" / "glm4_moe")
    trunk, layer = engine.target.text_model, engine.mtp.layers[0]
    scale = mx.where(mx.arange(trunk.model.norm.weight.size) % 2 == 0, 4.0, 1 / 4)
    trunk.model.norm.weight, layer.norm.weight = trunk.model.norm.weight * scale, layer.norm.weight * scale
    layer.hnorm.weight = layer.hnorm.weight / scale * mx.sqrt(mx.mean(scale**2))
    output = matrix_rows(trunk.lm_head, mx.arange(trunk.args.vocab_size)) / scale
    trunk.lm_head = nn.Linear(*reversed(output.shape), bias=False)
    trunk.lm_head.weight = output
    found = list(try_conventions(engine, engine.tokenizer.encode(TEXT)))
    post, *others = found
    assert post.default
    assert post.clearly_beats(next(one for one in others if one.convention == {"fed": "pre", "recycled": "post"}))
    assert not any(other.clearly_beats(post) for other in others)


def test_the_beginning_of_a_long_text_is_used(
    raw_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conventions, "MAX_TEXT_TOKENS", 40)
    engine = load(raw_checkpoint("qwen3_5", dtype="float32", vocab=16, positions=64))
    text = [3 + i % 13 for i in range(200)]
    room = engine.context - conventions.TOKENS
    assert list(try_conventions(engine, text)) == list(try_conventions(engine, text[:room]))


def test_too_short_a_text_and_no_head_are_refused(raw_checkpoint: Callable[..., Path]) -> None:
    engine = load(raw_checkpoint("qwen3_5", vocab=16))
    with pytest.raises(PromptError, match="1 tokens of the text can be used; expected 2 or more"):
        list(try_conventions(engine, [5]))
    small = load(raw_checkpoint("qwen3_5", vocab=16, positions=4))
    with pytest.raises(PromptError, match=r"0 tokens of the text can be used; .* in the model's context of 4"):
        list(try_conventions(small, [5] * 40))
    plain = load(raw_checkpoint("qwen3_5", vocab=16), mtp=False)
    with pytest.raises(HeadError, match="MTP was switched off"):
        list(try_conventions(plain, [5] * 40))


def test_the_command_prints_a_row_for_each_convention(
    raw_checkpoint: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(conventions, "STARTS", 1)
    folder = raw_checkpoint("qwen3_5", dtype="float32")
    (tmp_path / "text.txt").write_text(TEXT)
    command = ["inspect", str(folder), "--try-head", "--text", str(tmp_path / "text.txt")]
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()[-5:]
    assert [line[:8] for line in lines] == ["read    ", *["        "] * 3, "best    "]
    assert lines[0].startswith("read    fed post, recycled post (default): 1.0")
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["readings"]
    assert [one["default"] for one in found] == [True, False, False, False]


def test_the_command_refuses_what_it_cannot_try(
    raw_checkpoint: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(raw_checkpoint("qwen3_5", dtype="float32"))
    stripped = str(tiny.raw_checkpoint(tmp_path / "stripped", "qwen3_5", head=False))
    for arguments, words in (
        (["--try-head"], "name the one to try"),
        ([folder, "--text", "x"], "add --check or --try-head"),
        ([folder, "--try-head", "--text", str(tmp_path / "nowhere")], "nowhere: cannot be read (No such file"),
        ([stripped, "--try-head", "--head", stripped], "has no MTP head"),
    ):
        assert main(["inspect", *arguments]) == 2, arguments
        assert words in capsys.readouterr().err
    assert main(["inspect", stripped, "--try-head"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "check   there is no head to try"
