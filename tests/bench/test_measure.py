"""Plans and their measurement on a tiny model: every arm, equal tokens, and failures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlxmtp import Engine, GenerationOptions, OptionError, PromptError, load
from mlxmtp.bench.measure import Measurement, rotated
from mlxmtp.bench.plan import BenchPlan, BenchSettings, BenchUnit, make_plan
from mlxmtp.bench.runs import BenchRun, PrefilledPrompt, TokenDecoder
from mlxmtp.bench.workloads import WorkloadPrompt
from mlxmtp.targets import Target
from tests.bench.conftest import PROMPTS, SMALL
from tests.grids import cases
from tests.running import reference

pytestmark = pytest.mark.exhaustive

ARMS = ("mlx-lm", "plain", "depth 1", "depth 2", "auto")


def unit_of(plan: BenchPlan, kind: str, temperature: float = 0.0) -> BenchUnit:
    return next(unit for unit in plan.units if (unit.kind, unit.temperature) == (kind, temperature))


def test_a_plan_goes_repeat_by_repeat(plan: BenchPlan):
    """A benchmark that is stopped early has measured some of everything, and drift shows between repeats."""
    assert plan.arms == ARMS
    assert [unit.key for unit in plan.units[: len(plan.units) // 2]] == [
        "speed/0/talk/0/0",
        "speed/0/code/0/0",
        "speed/0/talk/0/0.8",
        "speed/0/code/0/0.8",
        "context/0/context/96/0",
    ]
    assert {unit.repeat for unit in plan.units[len(plan.units) // 2 :]} == {1}
    assert len({unit.key for unit in plan.units}) == len(plan.units)
    assert plan.cost_tokens == 8
    assert plan.notes == ()


def test_a_plan_is_the_same_plan_again_but_for_repeats(engine: Engine):
    def identity(settings: BenchSettings = SMALL, prompts: list[WorkloadPrompt] = PROMPTS) -> str:
        return make_plan(engine, settings, prompts).head["identity"]

    assert identity() == identity()
    assert identity(replace(SMALL, repeats=9)) == identity()
    others = [replace(SMALL, tokens=13), replace(SMALL, depths=(1,)), replace(SMALL, verify="token")]
    assert len({identity(), *map(identity, others), identity(prompts=PROMPTS[:1])}) == 5


def test_the_cost_curve_reaches_over_the_deepest_draft(engine: Engine):
    assert make_plan(engine, replace(SMALL, depths=(11,)), PROMPTS).cost_tokens == 12
    assert make_plan(engine, replace(SMALL, depths=()), PROMPTS).cost_tokens == 8


def test_a_depth_that_the_engine_refuses_is_refused_before_anything_is_measured(
    raw_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Target, "max_fast_tokens", 8)
    engine = load(raw_checkpoint("qwen3_5"), identity="strict")
    with pytest.raises(OptionError, match="depth is 9"):
        make_plan(engine, replace(SMALL, depths=(2, 9)), PROMPTS)


def test_contexts_and_prompts_that_do_not_fit_are_left_out_and_named(engine: Engine):
    """The model's context is 512."""
    long = WorkloadPrompt("talk", "long", "x" * 600)
    plan = make_plan(engine, replace(SMALL, contexts=(128, 512, 1024)), [*PROMPTS, long])
    assert {unit.number for unit in plan.units if unit.kind == "context"} == {128}
    assert plan.notes == (
        "prompts left out: 1; the model's context of 512 has no room for them and 64 tokens more",
        "contexts left out: 512, 1024; the model's context of 512 has no room for them",
    )
    with pytest.raises(PromptError, match="none of 1 prompts fits"):
        make_plan(engine, SMALL, [long])


def test_without_a_head_only_plain_decoding_is_measured(headless: Engine):
    plan = make_plan(headless, SMALL, PROMPTS)
    assert plan.arms == ("mlx-lm", "plain")
    assert plan.notes[0].startswith("no MTP: ")
    assert str(headless.plain_because) in plan.notes[0]
    record = Measurement(headless, plan).measure(unit_of(plan, "speed"))
    assert set(record["runs"]) == {"mlx-lm", "plain"}
    assert record["differs"] == {}
    assert record["cost"]["draft"] == 0.0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (BenchSettings(acceptance=1.5), "--synthetic-acceptance is 1.5; expected a number from 0 to 1"),
        (BenchSettings(acceptance=0.5), "leave --temps out"),
        (BenchSettings(temperatures=(-1.0,)), "expected 0 \\(greedy\\) or at least"),
        (BenchSettings(temperatures=(float("nan"),)), "expected 0 \\(greedy\\) or at least"),
    ],
)
def test_settings_that_contradict_each_other(settings: BenchSettings, said: str):
    with pytest.raises(OptionError, match=said):
        settings.checked()


def test_every_arm_gives_the_tokens_of_mlx_lm(engine: Engine):
    """Greedy, past end tokens."""
    tokens = PROMPTS[0].tokens(engine.tokenizer)
    truth = tuple(reference(engine, list(tokens), 24))
    for ours_first in (True, False):
        prompt = PrefilledPrompt(TokenDecoder(engine), tokens, ours_first=ours_first)
        runs = [
            prompt.run_mlx_lm(24, GenerationOptions()),
            *(prompt.run_ours(d, 24, GenerationOptions()) for d in (0, 1, 3, None)),
        ]
        assert [run.tokens for run in runs] == [truth] * 5
        assert [run.rounds for run in runs[:2]] == [24, 24]
        assert all(run.rate > 0 and run.first_s > 0 and run.peak_bytes > 0 for run in runs)


def test_end_tokens_end_nothing(engine: Engine):
    """If every token is an end token, a turn of the engine has one token; a benchmark's run has all."""
    tokens = PROMPTS[0].tokens(engine.tokenizer)
    prompt = PrefilledPrompt(TokenDecoder(engine), tokens, ours_first=True)
    ends = set(engine.tokenizer.eos_token_ids)
    engine.tokenizer.eos_token_ids = range(len(engine.tokenizer))
    try:
        assert len(engine.generate(list(tokens), GenerationOptions(max_tokens=9)).tokens) == 1
        assert len(prompt.run_ours(2, 9, GenerationOptions()).tokens) == 9
    finally:
        engine.tokenizer.eos_token_ids = ends


def test_a_run_counts_its_drafts(engine: Engine):
    prompt = PrefilledPrompt(TokenDecoder(engine), PROMPTS[0].tokens(engine.tokenizer), ours_first=True)
    run = prompt.run_ours(2, 40, GenerationOptions())
    stats = engine.generate(prompt.tokens, GenerationOptions(max_tokens=40, depth=2)).stats
    assert run.drafted == stats.drafted_by_depth
    assert sum(run.accepted) == stats.accepted
    assert run.rounds == stats.rounds
    fields = run.to_dict()
    assert fields["tokens"] == 40
    assert fields["drafted"] == list(run.drafted)


def test_runs_leave_the_prompt_as_it_was_read(engine: Engine):
    prompt = PrefilledPrompt(TokenDecoder(engine), PROMPTS[1].tokens(engine.tokenizer), ours_first=True)
    before = list(prompt.sequence.tokens), prompt.sequence.offset, prompt.sequence.drafting
    first = prompt.run_ours(2, 16, GenerationOptions()).tokens
    prompt.run_ours(0, 16, GenerationOptions())
    assert (list(prompt.sequence.tokens), prompt.sequence.offset, prompt.sequence.drafting) == before
    assert prompt.run_ours(2, 16, GenerationOptions()).tokens == first


def test_a_unit_s_record(engine: Engine, plan: BenchPlan):
    steps: list[str] = []
    bench = Measurement(engine, plan, steps.append)
    unit = unit_of(plan, "speed")
    record = bench.measure(unit)
    assert record["key"] == unit.key
    assert set(record["runs"]) == set(record["order"]) == set(ARMS)
    assert record["differs"] == {}
    assert set(record["readings"]) == {"mlx-lm", "ours"}
    assert "talk 0, depth 2" in steps
    assert steps.count("warming up") == 1
    second = bench.measure(plan.units[plan.units.index(unit) + 1])
    assert second["order"] != record["order"], "the order goes round"
    assert steps.count("warming up") == 1, "once for a kind"


@pytest.mark.exhaustive
@pytest.mark.parametrize("verify", cases(["token", "block", "seeded"], ("block",)))
def test_sampled_units_can_be_repeated(engine: Engine, verify: Any):
    plan = make_plan(engine, replace(SMALL, verify=verify), PROMPTS[:1])
    unit = unit_of(plan, "speed", 0.8)
    one, other = (Measurement(engine, plan).measure(unit) for _ in range(2))
    assert one["differs"] == {}
    for arm in set(ARMS) - {"auto"}:  # which goes by the clock
        assert one["runs"][arm]["accepted"] == other["runs"][arm]["accepted"]
        assert one["runs"][arm]["rounds"] == other["runs"][arm]["rounds"]


def test_contexts_and_the_cost_of_rounds_there(engine: Engine, plan: BenchPlan):
    record = Measurement(engine, plan).measure(unit_of(plan, "context"))
    assert (record["number"], record["prompt_tokens"], record["differs"]) == (96, 96, {})
    assert record["cost"]["context"] == 96
    assert len(record["cost"]["rows"]) == 8
    assert all(seconds > 0 for seconds in record["cost"]["rows"])


def test_of_a_model_that_takes_no_row_back_nothing_is_priced(headless: Engine, monkeypatch: Any):
    monkeypatch.setattr(headless.target, "reversible", False)
    plan = make_plan(headless, SMALL, PROMPTS)
    assert Measurement(headless, plan).measure(unit_of(plan, "speed"))["cost"] is None


@pytest.mark.parametrize(
    ("arm", "temperature", "verify"),
    cases([("depth 2", 0.0, "token"), ("depth 1", 0.8, "seeded")], (("depth 2", 0.0, "token"),)),
)
def test_a_difference_is_a_finding(engine: Engine, monkeypatch: Any, arm: str, temperature: float, verify: Any):
    """The record has its position and its logit gap."""
    plan = make_plan(engine, replace(SMALL, verify=verify), PROMPTS[:1])
    real = Measurement._run

    def wrong(self: Measurement, prompt: PrefilledPrompt, name: str, unit: BenchUnit, count: int) -> BenchRun:
        run = real(self, prompt, name, unit, count)
        if name != arm:
            return run
        return replace(run, tokens=(*run.tokens[:5], (run.tokens[5] + 1) % 288, *run.tokens[6:]))

    monkeypatch.setattr(Measurement, "_run", wrong)
    unit = unit_of(plan, "speed", temperature)
    (name, found), *others = Measurement(engine, plan).measure(unit)["differs"].items()
    assert (name, found["at"], others) == (arm, 5, [])
    assert found["found"] == [(found["expected"][0] + 1) % 288]
    if not temperature:
        assert found["gap"] > 0, "greedy decoding took the likeliest"


def test_the_gap_is_that_of_the_model_s_logits(engine: Engine):
    tokens = PROMPTS[0].tokens(engine.tokenizer)
    prompt = PrefilledPrompt(TokenDecoder(engine), tokens, ours_first=True)
    behind = [40, 41, 42]
    logits = engine.target.model(mx.array([[*tokens, *behind]]))[0, -1]
    assert prompt.gap(behind, 7, 9) == pytest.approx((logits[7] - logits[9]).item(), abs=1e-4)


@pytest.mark.parametrize(("acceptance", "tokens_a_round"), [(0.0, 1.0), (1.0, 3.0)])
def test_a_synthetic_acceptance_is_that_acceptance(engine: Engine, acceptance: float, tokens_a_round: float):
    """It does not depend on the head's drafts, which are nearly always wrong here."""
    prompt = PrefilledPrompt(TokenDecoder(engine, acceptance), PROMPTS[0].tokens(engine.tokenizer), ours_first=True)
    run = prompt.run_ours(2, 60, GenerationOptions())
    assert run.rounds == 60 / tokens_a_round
    assert all(share == acceptance for share in _shares(run))


@pytest.mark.parametrize("acceptance", cases([None, 0.9], (0.9,)))
def test_what_auto_learns_stays_in_the_benchmark(
    engine: Engine, acceptance: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A later turn must not start from a synthetic acceptance, nor a report depend on earlier turns."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    taught = load(engine.path)
    taught.generate(list(range(20)), GenerationOptions(max_tokens=60))
    (file,) = tmp_path.rglob("depth/*")
    assert taught.policies.of(None).state()  # type: ignore[union-attr]
    written = file.read_bytes()
    measured = TokenDecoder(taught, acceptance)
    assert measured.policy(None).state() == {}  # type: ignore[union-attr]
    PrefilledPrompt(measured, range(20), ours_first=True).run_ours(None, 60, GenerationOptions())
    assert measured.policy(None).state()  # type: ignore[union-attr]
    assert file.read_bytes() == written


def test_with_a_synthetic_acceptance_nothing_is_looked_up(engine: Engine):
    """The synthetic acceptance is that of the head's drafts. Drafts of prompt lookup would cost nothing."""
    policies = [TokenDecoder(engine, acceptance).policy(None) for acceptance in (None, 0.9)]
    assert [policy.max_lookup > 0 for policy in policies] == [True, False]  # type: ignore[union-attr]
    prompt = PrefilledPrompt(TokenDecoder(engine, 0.9), PROMPTS[0].tokens(engine.tokenizer) * 6, ours_first=True)
    assert prompt.run_ours(None, 100, GenerationOptions()).looked_up == 0


@pytest.mark.exhaustive
def test_synthetic_coins_are_fair_and_the_same_again(engine: Engine):
    prompt = PrefilledPrompt(TokenDecoder(engine, 0.7), PROMPTS[0].tokens(engine.tokenizer), ours_first=True)
    whole = prompt.run_ours(1, 400, GenerationOptions(seed=5))
    assert _shares(whole)[0] == pytest.approx(0.7, abs=0.1)  # 235 coins: more than three standard deviations
    one, again, other = (prompt.run_ours(1, 60, GenerationOptions(seed=seed)) for seed in (5, 5, 6))
    assert one.tokens == whole.tokens[:60]
    assert (one.tokens, one.accepted) == (again.tokens, again.accepted)
    assert one.accepted != other.accepted


def test_synthetic_units_compare_plain_decoding_only(engine: Engine):
    plan = make_plan(engine, replace(SMALL, acceptance=0.5, temperatures=(0.0,)), PROMPTS[:1])
    assert Measurement(engine, plan).measure(unit_of(plan, "speed"))["differs"] == {}


def test_what_does_not_fit_into_memory_is_a_record(engine: Engine, plan: BenchPlan, monkeypatch: Any):
    def full(*_: object, **__: object) -> None:
        raise RuntimeError("[malloc] Unable to allocate 1 bytes")

    monkeypatch.setattr("mlxmtp.bench.measure.PrefilledPrompt", full)
    record = Measurement(engine, plan).measure(unit_of(plan, "context"))
    assert record["failed"].startswith("out of memory: ")
    assert "runs" not in record


def test_other_errors_are_errors(engine: Engine, plan: BenchPlan, monkeypatch: Any):
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("something else")

    monkeypatch.setattr("mlxmtp.bench.measure.PrefilledPrompt", broken)
    with pytest.raises(RuntimeError, match="something else"):
        Measurement(engine, plan).measure(unit_of(plan, "context"))


def test_arms_take_turns():
    assert rotated(("a", "b", "c"), 1) == ("b", "c", "a")
    assert {rotated(("a", "b", "c"), turn)[0] for turn in range(3)} == {"a", "b", "c"}


def _shares(run: BenchRun) -> list[float]:
    return [a / d for a, d in zip(run.accepted, run.drafted, strict=True)]
