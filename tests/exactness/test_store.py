"""Verdicts are kept for what they depend on, and what cannot be kept or read costs a probe and nothing else."""

import json
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import mlx.core as mx
import pytest

from mlxmtp import Engine, GenerationOptions, load
from mlxmtp.engine import store as engine_store
from mlxmtp.exactness import store as room
from mlxmtp.exactness.guarantee import Guarantee
from mlxmtp.exactness.probe import GPU_TOKENS
from mlxmtp.exactness.store import cache_file, load_guarantee, save_guarantee
from mlxmtp.targets import Target
from tests.exactness.stand_in import backend

GUARANTEE = Guarantee("identical-canonical", 8, 1100, 2, ways={"a": "gathered"})


@pytest.fixture
def model(raw_checkpoint: Callable[..., Path]) -> Path:
    return raw_checkpoint("qwen3_5")


@pytest.fixture
def probes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The identities that were probed, in order."""
    told: list[str] = []
    probe = engine_store.probe

    def counted(target: object, tokens: object, identity: str, *rest: object, **options: object) -> Guarantee:
        told.append(identity)
        return probe(target, tokens, identity, *rest, **options)

    monkeypatch.setattr(engine_store, "probe", counted)
    return told


@pytest.fixture
def invented(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """As `probes`, but nothing is run: every identity is "identical"."""
    told: list[str] = []

    def counted(target: object, tokens: object, identity: str, *rest: object, **options: object) -> Guarantee:
        told.append(identity)
        return Guarantee("identical", 17, 1100)

    monkeypatch.setattr(engine_store, "probe", counted)
    return told


def guarantee(engine: Engine) -> Guarantee:
    return engine.guarantee


def test_a_model_is_probed_once_for_each_identity(model: Path, probes: list[str], data: Path) -> None:
    for _ in range(2):
        assert guarantee(load(model)) == guarantee(load(model, identity="strict"))
    assert probes == ["fast", "strict"]
    assert guarantee(load(model)).promise == "identical"
    assert len(list(data.rglob("*.json"))) == 2
    assert not list(data.rglob("*.partial"))


def test_a_kept_verdict_brings_its_arithmetic(model: Path, probes: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Target, "max_fast_tokens", GPU_TOKENS)  # no longer passes are probed
    with backend():
        for identity, width in (("strict", 1), ("canonical", 2)):
            first, again = load(model, identity=identity), load(model, identity=identity)
            assert first.guarantee == again.guarantee
            assert (first.target.min_tokens, again.target.min_tokens) == (width, width)
            prompt = list(range(5, 30))
            assert (
                again.generate(prompt, GenerationOptions(max_tokens=10)).tokens
                == first.generate(prompt, GenerationOptions(max_tokens=10)).tokens
            )
        plain = load(model, mtp=False).generate(prompt, GenerationOptions(max_tokens=10)).tokens
        assert load(model, identity="strict").generate(prompt, GenerationOptions(max_tokens=10)).tokens == plain
    assert probes == ["strict", "canonical"]


def test_a_verdict_holds_with_the_head_and_without(model: Path, invented: list[str]) -> None:
    """Else `--no-mtp` could be given another width than canonical identity has with drafts."""
    found = guarantee(load(model, identity="canonical"))
    assert guarantee(load(model, identity="canonical", mtp=False)) == found
    assert invented == ["canonical"]


def test_another_machine_model_or_version_is_probed_again(
    model: Path, raw_checkpoint: Callable[..., Path], invented: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    guarantee(load(model))
    guarantee(load(raw_checkpoint("qwen3_5", seed=1)))
    assert len(invented) == 2
    monkeypatch.setenv("MLX_SOME_SWITCH", "1")
    guarantee(load(model))
    assert len(invented) == 3
    monkeypatch.setattr(room, "kernel_facts", lambda: {"device": "another"})
    guarantee(load(model))
    assert len(invented) == 4
    monkeypatch.setattr("mlxmtp.machine.version", lambda name: "0.0")
    guarantee(load(model))
    assert len(invented) == 5


def test_facts_make_the_name_and_nothing_that_changes_by_itself() -> None:
    assert cache_file("identity", model="a", identity="fast") == cache_file("identity", model="a", identity="fast")
    busy = mx.zeros((1 << 20,))
    mx.eval(busy)
    names = {cache_file("identity", model=m, identity=i).name for m in "ab" for i in ("fast", "strict")}
    assert len(names) == 4
    assert cache_file("identity", model="a", identity="fast").name in names, "memory in use is no fact"


@pytest.mark.parametrize("kept", [GUARANTEE, replace(GUARANTEE, because="ü\n"), Guarantee("distribution", 8, 32)])
def test_what_is_written_is_read(tmp_path: Path, kept: Guarantee) -> None:
    file = tmp_path / "new" / "v.json"
    assert load_guarantee(file) is None
    save_guarantee(file, kept)
    assert load_guarantee(file) == kept
    assert [entry.name for entry in file.parent.iterdir()] == ["v.json"]


def test_a_probe_that_was_cut_short_is_not_kept(tmp_path: Path) -> None:
    save_guarantee(tmp_path / "v.json", replace(GUARANTEE, complete=False))
    assert not list(tmp_path.iterdir())


GOOD = asdict(GUARANTEE)
DAMAGED = {
    "empty": b"",
    "cut": json.dumps(GOOD).encode()[:-5],
    "not UTF-8": b"\xff\xfe{}",
    "zeros": bytes(200),
    "no object": b"[1, 2]",
    "null": b"null",
    "a field too many": json.dumps(GOOD | {"colour": "red"}).encode(),
    "a field too few": json.dumps({"promise": "identical"}).encode(),
    "an unknown promise": json.dumps(GOOD | {"promise": "surely"}).encode(),
    "a promise of another type": json.dumps(GOOD | {"promise": ["identical"]}).encode(),
    "a width of another type": json.dumps(GOOD | {"min_tokens": "2"}).encode(),
    "no width": json.dumps(GOOD | {"min_tokens": 0}).encode(),
    "a number for a truth": json.dumps(GOOD | {"row_by_row": 1}).encode(),
    "not complete": json.dumps(GOOD | {"complete": False}).encode(),
    "deep": b"[" * 100_000,
    "a number without end": b'{"num_tokens": ' + b"9" * 50_000 + b"}",
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_file_is_no_verdict(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "v.json"
    file.write_bytes(content)
    assert load_guarantee(file) is None
    save_guarantee(file, GUARANTEE)
    assert load_guarantee(file) == GUARANTEE


def test_a_folder_in_its_place_is_no_verdict(tmp_path: Path) -> None:
    file = tmp_path / "v.json"
    file.mkdir()
    assert load_guarantee(file) is None
    save_guarantee(file, GUARANTEE)
    assert [entry.name for entry in tmp_path.iterdir()] == ["v.json"], "and leaves nothing behind"


@pytest.mark.parametrize("step", ["mkdir", "write_text", "replace"])
def test_a_disk_that_takes_nothing_ends_nothing(
    model: Path, invented: list[str], data: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    owner = {"mkdir": Path, "write_text": Path, "replace": os}[step]
    monkeypatch.setattr(owner, step, full)
    for _ in range(2):
        assert guarantee(load(model)).promise == "identical"
    assert invented == ["fast", "fast"]
    assert not [path for path in data.rglob("*") if path.is_file()]
