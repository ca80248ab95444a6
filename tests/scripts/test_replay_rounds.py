"""`scripts/replay_rounds.py`: rounds at known prices, through texts of which it is known what drafts would stand."""

import json
import runpy
from pathlib import Path

import pytest

from mlxmtp import GenerationOptions, load
from mlxmtp.decoding.auto_depth import AutoDepth

SCRIPT = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "replay_rounds.py"))
TRAINED = Path(__file__).parents[1] / "trained" / "glm4_moe"
Clock, Notes, chosen, fixed = (SCRIPT[name] for name in ("Clock", "Notes", "chosen", "fixed"))
DRAFTED, DEEPEST, STEP = (SCRIPT[name] for name in ("DRAFTED", "DEEPEST", "STEP"))


def notes(stand: list[int], repeats: int = 10**6) -> object:
    """Tokens are the same again after so many."""
    return Notes("code", [0], [1 + i % repeats for i in range(len(stand) + DEEPEST)], stand)


def test_fixed_depths_pay_for_what_they_draft() -> None:
    text = notes([2, 0, 1, 0, 0, 3])
    assert fixed(text, 0) == 6
    assert fixed(text, 1) == pytest.approx(3 * DRAFTED[1] + 1)  # 2 + 2 + 1 tokens, and a plain one
    assert fixed(text, 2) == pytest.approx(2 * DRAFTED[2] + DRAFTED[1] + 1)  # 3 + 1 + 1, and a plain one


def test_auto_parks_where_nothing_stands_and_drafts_deep_where_everything_does() -> None:
    """Two thousand tokens, of which the first are spent on finding out."""
    never, always = notes([0] * 2000), notes([DEEPEST] * 2000)
    assert 2000 < chosen(never, AutoDepth(DEEPEST), Clock(1)) < 1.05 * 2000
    best = min(fixed(always, depth) for depth in range(DEEPEST + 1))
    assert best <= chosen(always, AutoDepth(DEEPEST), Clock(1)) < 1.1 * best


def test_auto_looks_up_what_repeats_itself() -> None:
    text = notes([0] * 600, repeats=100)
    assert chosen(text, AutoDepth(DEEPEST, 16), Clock(1)) < 0.7 * chosen(text, AutoDepth(DEEPEST), Clock(1))


def test_the_clock_strays_about_the_time_of_a_busy_machine() -> None:
    clock = Clock(1)
    times = [clock.time(1.0) / STEP for _ in range(20000)]
    assert sum(times) / len(times) == pytest.approx(1.1, abs=0.04)  # at rest for three quarters of the time
    assert sum(1.4 < time < 1.9 for time in times) / len(times) == pytest.approx(0.17, abs=0.05)  # of the steps


def test_what_is_noted_is_what_speculation_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rounds at depth 2 emit as many tokens as the notes say."""
    text = "Write a story about a cat."
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"workload": "mine", "turns": [text]}) + "\n")
    arguments = f"replay_rounds.py --model {TRAINED} --prompts {prompts} --tokens 32 --runs 2"
    monkeypatch.setattr("sys.argv", arguments.split())
    found = []
    main = SCRIPT["main"]
    monkeypatch.setitem(main.__globals__, "report", lambda notes, runs: found.extend(notes))
    main()
    reply = load(TRAINED).generate(text, GenerationOptions(max_tokens=32, depth=2))
    assert found[0].tokens[:32] == list(reply.tokens)
    rounds = reply.stats.rounds
    assert fixed(found[0], 2) == pytest.approx(rounds * DRAFTED[2], abs=DRAFTED[2])
    SCRIPT["report"](found, 2)
    assert [line.split(" | ")[0] for line in capsys.readouterr().out.splitlines()[2:]] == ["| mine", "| all"]
