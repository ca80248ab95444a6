"""`Worker` with models of its own: one after the other, and after every failure."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models import llama

from mlxmtp import GenerationOptions, load
from mlxmtp.worker.messages import (
    Compare,
    Comparison,
    Event,
    Failed,
    Finished,
    Generate,
    ListModels,
    Load,
    Loaded,
    Models,
    PromptProgress,
    Stopped,
)
from tests import tiny
from tests.exactness.stand_in import backend, narrow, wide
from tests.worker.driving import Driven, serve, text_of

pytestmark = pytest.mark.process

HELLO = [{"role": "user", "content": "hello"}]
VOCABULARY = 300
"""Every byte has a token: a prompt has as many as letters."""


# -- a process, its models and its failures ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without a head, fast at reading long prompts, that says what it likes."""
    folder = tmp_path_factory.mktemp("llama")
    config = {
        "model_type": "llama", "hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 32,
        "num_attention_heads": 1, "rms_norm_eps": 1e-6, "vocab_size": VOCABULARY, "tie_word_embeddings": True,
        "max_position_embeddings": 100_000,
    }  # fmt: skip
    mx.random.seed(0)
    model = llama.Model(llama.ModelArgs.from_dict(config))
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())))
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.6}))
    tiny.tokenizer(folder, VOCABULARY)
    return folder


def kinds(events: list[Event]) -> list[type[Event]]:
    return [type(event) for event in events]


def test_a_process_goes_on_after_every_failure(started: Driven, plain_model: Path, tmp_path: Path) -> None:
    worker, empty = started, str(tmp_path)
    for model in (str(tmp_path / "missing"), "missing", empty, "owner/name"):
        (failed,) = worker.answer(Load, model)
        assert isinstance(failed, Failed)
        assert failed.kind == "refused"
        assert model in failed.message
        assert kinds(worker.answer(Generate, HELLO, GenerationOptions())) == [Failed]
    assert worker.answer(ListModels)[0].models == []
    (loaded,) = worker.answer(Load, str(plain_model))
    assert isinstance(loaded, Loaded)
    assert loaded.sampling == {"temperature": 0.6}
    assert (loaded.name, loaded.head) == (str(plain_model), None)
    assert loaded.plain_because == "no MTP head family for model type 'llama' yet"
    assert (loaded.context, loaded.has_thinking) == (100_000, False)
    assert kinds(worker.answer(Generate, HELLO, GenerationOptions(depth=1))) == [Failed]

    expected = load(plain_model).generate(HELLO, GenerationOptions(max_tokens=9)).text
    assert text_of(worker.answer(Generate, HELLO, GenerationOptions(max_tokens=9))) == expected
    stop_in_the_prompt(worker)
    assert text_of(worker.answer(Generate, HELLO, GenerationOptions(max_tokens=9))) == expected

    for model in (empty, str(tmp_path / "missing"), "owner/name"):
        (failed,) = worker.answer(Load, model)
        assert isinstance(failed, Failed)
        assert failed.still_loaded
        assert text_of(worker.answer(Generate, HELLO, GenerationOptions(max_tokens=9))) == expected, (
            "the old one is there still"
        )
    broken = tmp_path / "broken"
    shutil.copytree(plain_model, broken)
    config = json.loads((broken / "config.json").read_text()) | {"hidden_size": 64}
    (broken / "config.json").write_text(json.dumps(config))
    (failed,) = worker.answer(Load, str(broken))
    assert isinstance(failed, Failed)
    assert not failed.still_loaded, "found only when there was no room for both"
    (failed,) = worker.answer(Generate, HELLO, GenerationOptions())
    assert failed == Failed(failed.id, "refused", "no model is loaded; choose one first"), "the old one is gone"


def stop_in_the_prompt(worker: Driven) -> None:
    command = worker.send(Generate, [{"role": "user", "content": "a" * 40_000}], GenerationOptions(max_tokens=9))
    first = worker.event()
    assert isinstance(first, PromptProgress)
    worker.stop(command)
    events = worker.rest(command)
    assert events[-1] == Finished(command, "interrupted", {"role": "assistant", "content": ""})
    read = [event for event in [first, *events] if isinstance(event, PromptProgress)]
    assert all(event.done < event.total for event in read)
    assert kinds(events) == [PromptProgress] * (len(read) - 1) + [Finished]


@pytest.mark.exhaustive
def test_both_ways_are_compared(started: Driven, raw_checkpoint: Callable[..., Path]) -> None:
    assert isinstance(started.answer(Load, str(raw_checkpoint("qwen3_5")))[-1], Loaded)
    events = started.answer(Compare, HELLO, GenerationOptions(depth=2))
    assert set(kinds(events)) == {Comparison}
    assert {event.depth for event in events} == {2}
    assert len({event.total for event in events}) == 1
    done = [event.done for event in events]
    assert done == sorted(set(done))
    assert len(done) > 3
    complete = [event for event in events if event.done == event.total]
    assert complete == [events[-1]]
    assert len(complete[0].plain) == len(complete[0].mtp) == 3
    assert all(rate > 0 for rate in complete[0].plain + complete[0].mtp)
    assert kinds(started.answer(ListModels)) == [Models], "nothing more came"


def test_load_takes_its_options(plain_model: Path, raw_checkpoint: Callable[..., Path]) -> None:
    raw, bare = raw_checkpoint("qwen3_5"), raw_checkpoint("qwen3_5", head=False)
    commands = Load(1, str(raw)), Load(2, str(raw), mtp=False), Load(3, str(bare), head=str(raw)), Load(4, str(bare))
    facts = [(event.head, event.plain_because) for event in serve(*commands) if isinstance(event, Loaded)]
    assert facts[:3] == [("qwen-mtp", None), (None, "MTP was switched off"), ("qwen-mtp", None)]
    assert facts[3][0] is None
    assert facts[3][1]


@pytest.mark.exhaustive
def test_the_promise_is_that_of_the_identity_asked_for(
    raw_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a backend whose norms depend on the number of rows, for which there is no one-row arithmetic."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))  # what was found on another backend is kept elsewhere
    raw = str(raw_checkpoint("qwen3_5"))
    with backend(narrow, norms=wide):
        asked = Load(1, raw), Load(2, raw, identity="strict"), Load(3, raw, identity="canonical")
        fast, strict, canonical = (event for event in serve(*asked) if isinstance(event, Loaded))
    assert (fast.head, fast.promise) == ("qwen-mtp", "distribution")
    assert (strict.head, strict.promise) == (None, "distribution")
    assert (strict.plain_because or "").startswith("strict identity cannot be kept here: logits differ")
    assert (canonical.head, canonical.promise_at(7)) == ("qwen-mtp", "identical-canonical")


def test_a_new_model_starts_a_new_conversation() -> None:
    """Its caches know nothing of what another one read, be it of the same sizes."""
    load_it, first = Load(1, mtp=False), Generate(2, HELLO, GenerationOptions(max_tokens=3))
    answer = serve(load_it, first)[-1]
    assert isinstance(answer, Finished)
    more = Generate(4, [*HELLO, answer.message, *HELLO], GenerationOptions(max_tokens=1))
    same, other = serve(load_it, first, more)[-1], serve(load_it, first, Load(3, mtp=False), more)[-1]
    assert isinstance(same, Finished)
    assert isinstance(other, Finished)
    assert same.stats.reused_tokens > 0
    assert other.stats.reused_tokens == 0
    assert other.message == same.message


def test_a_command_that_waited_too_long_is_not_begun() -> None:
    engine = SimpleNamespace(scheduler=lambda *_: None)  # nothing else can be asked of it
    assert serve(Compare(1, HELLO, GenerationOptions()), Load(2), engine=engine, stops=lambda _: True) == [
        Stopped(1),
        Stopped(2),
    ]


def test_a_comparison_without_a_head(plain_model: Path) -> None:
    events = serve(Load(1, str(plain_model)), Compare(2, HELLO, GenerationOptions()), ListModels(3))
    measured = [event for event in events if isinstance(event, Comparison)]
    assert {event.depth for event in measured} == {None}
    assert (measured[-1].done, len(measured[-1].plain), len(measured[-1].mtp)) == (measured[-1].total, 3, 3)
    assert isinstance(events[-1], Models)
