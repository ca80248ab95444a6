"""The depth policy's state is kept from run to run; a state that cannot be saved or read costs rounds only."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mlxmtp import GenerationOptions, load
from mlxmtp.decoding.auto_depth import AutoDepth
from mlxmtp.decoding.depth import Plan
from mlxmtp.decoding.estimates import AcceptanceRate, LookupAcceptance
from mlxmtp.decoding.round_costs import RoundCosts
from mlxmtp.decoding.sharing_rates import SharingRates
from mlxmtp.engine import depth_store
from tests.engine.kinds import TRAINED

COSTS = {1: 1.4, 3: 2.1}
LOOKUPS = LookupAcceptance([[0.2], [0.5, 0.6], [], [0.9, 0.95]])
KNOWN = AutoDepth(6, 9, RoundCosts(COSTS, {8: 2.5}), AcceptanceRate([0.8, 0.7]), LOOKUPS)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return tmp_path / "data"


def test_what_is_kept_is_recalled(tmp_path: Path) -> None:
    depth_store.save(tmp_path / "x" / "known.json", KNOWN)
    found = depth_store.load(tmp_path / "x" / "known.json", 6, 9)
    assert (found.max_depth, found.max_lookup) == (6, 9)
    assert found.costs.sure("head") == pytest.approx(COSTS)
    assert found.costs.sure("lookup") == pytest.approx({8: 2.5})
    assert found.acceptance.shares == pytest.approx([0.8, 0.7])
    assert found.lookup.shares[3] == pytest.approx([0.9, 0.95])
    assert found.plan() == [Plan(2)], "nothing is left to be tried out first"


def test_costs_are_kept_by_the_number_of_sequences(tmp_path: Path) -> None:
    """A file of an earlier version has those of one."""
    file, shared = tmp_path / "known.json", {2: RoundCosts({1: 1.2, 3: 1.7}, {4: 1.5}), 5: RoundCosts({1: 1.9})}
    known = AutoDepth(6, 9, RoundCosts(COSTS), AcceptanceRate([0.8]), shared_costs=shared)
    known.sharing = SharingRates({1: 1.0, 2: 1.3})
    depth_store.save(file, known)
    found = depth_store.load(file, 6, 9)
    assert found.state() == known.state()
    assert found.costs.sure("head") == pytest.approx(COSTS)
    assert found.state()["shared"]["2"] == {"steps": {1: 1.2, 3: 1.7}, "looked_up_steps": {4: 1.5}}
    assert found.sharing.times() == {1: 1.0, 2: 1.3}
    assert found.plan([0, 0]) == [Plan(4)] * 2, "nothing is left to be tried out first"
    state = json.loads(file.read_text())
    del state["shared"], state["sharing"]
    file.write_text(json.dumps(state))
    assert depth_store.load(file, 6, 9).costs.sure("head") == pytest.approx(COSTS)


def test_nothing_is_kept_of_a_policy_that_knows_no_plain_step(tmp_path: Path) -> None:
    depth_store.save(tmp_path / "known.json", AutoDepth(6, 9))
    assert not list(tmp_path.iterdir())


def good() -> dict[str, object]:
    shares = {"acceptance": [0.5], "repeats": [[0.5]]}
    return {"steps": {"0": 1.0, "3": 2.0}, "looked_up_steps": {}, **shares}


DAMAGED = {
    "nothing": b"",
    "cut": json.dumps(good()).encode()[:-9],
    "null": b"null",
    "a list": b"[]",
    "no steps": json.dumps(good() | {"steps": None}).encode(),
    "a depth that is none": json.dumps(good() | {"steps": {"zero": 1}}).encode(),
    "a depth out of range": json.dumps(good() | {"looked_up_steps": {"1000000000": 1}}).encode(),
    "no time at all": json.dumps(good() | {"steps": {"0": 0}}).encode(),
    "not a number": json.dumps(good() | {"steps": {"0": float("nan")}}).encode(),
    "a text for a number": json.dumps(good() | {"acceptance": ["0.5"]}).encode(),
    "more than all": json.dumps(good() | {"acceptance": [1.5]}).encode(),
    "costs of no sequences": json.dumps(good() | {"shared": {"0": good()}}).encode(),
    "costs of two that are none": json.dumps(good() | {"shared": {"2": {"steps": {"1": "1"}}}}).encode(),
    "a list of costs": json.dumps(good() | {"shared": [1.0]}).encode(),
    "a number that takes no time": json.dumps(good() | {"sharing": {"2": 0}}).encode(),
    "shares without lengths": json.dumps(good() | {"repeats": [0.5]}).encode(),
}


def test_a_damaged_file_is_as_none(tmp_path: Path) -> None:
    file = tmp_path / "known.json"
    for name, content in DAMAGED.items():
        file.write_bytes(content)
        assert not depth_store.load(file, 6, 9).costs.known, name
        depth_store.save(file, KNOWN)
        assert depth_store.load(file, 6, 9).costs.known, name


def test_an_engine_keeps_what_its_turns_taught_it(raw_checkpoint: Callable[..., Path], folder: Path) -> None:
    model = raw_checkpoint("qwen3_5", dtype="float32")
    prompt = list(range(5, 30))
    engine = load(model)
    engine.generate(prompt, GenerationOptions(max_tokens=4, depth=2))
    assert not list(folder.rglob("depth/*.json")), "a depth that was asked for teaches nothing"
    engine.generate(prompt, GenerationOptions(max_tokens=24))
    (file,) = folder.rglob("depth/*.json")
    shares = json.loads(file.read_text())["acceptance"]
    assert shares
    assert load(model).policies.of(None).acceptance.shares == pytest.approx(shares)  # type: ignore[union-attr]

    again = load(model)
    chunks = again.stream(prompt, GenerationOptions(max_tokens=24))
    next(chunks)
    file.unlink()
    chunks.close()  # type: ignore[attr-defined]
    assert file.exists(), "of a turn that is left early too"
    load(raw_checkpoint("qwen3_5", dtype="float32", seed=1)).generate(prompt, GenerationOptions(max_tokens=24))
    assert len(list(folder.rglob("depth/*.json"))) == 2, "each model has its own"


def test_a_first_short_turn_with_a_good_head_teaches_the_next_run(folder: Path) -> None:
    """Where drafts pay, plain steps are few; and without them nothing is known of what a round costs."""
    load(TRAINED / "glm4_moe").generate("Natalia sold clips to", GenerationOptions(max_tokens=64))
    assert list(folder.rglob("depth/*.json"))
    assert load(TRAINED / "glm4_moe").policies.of(None).costs.known  # type: ignore[union-attr]


def test_turns_that_share_passes_teach_what_those_cost(folder: Path) -> None:
    engine = load(TRAINED / "glm4_moe")
    engine.batch(["Natalia sold clips to", "Weng earns 12 dollars an hour"], GenerationOptions(max_tokens=160))
    (file,) = folder.rglob("depth/*.json")
    assert json.loads(file.read_text())["shared"].keys() == {"2"}
    again = load(TRAINED / "glm4_moe").policies.of(None)
    assert isinstance(again, AutoDepth)
    assert 2 in again.sharing.times()
