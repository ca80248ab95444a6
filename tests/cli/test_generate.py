"""`mlxmtp generate` with a scripted engine: its output streams, and its exit codes."""

import io
import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from mlxmtp.errors import CheckpointError, HeadError, NumericsError, OptionError, PromptError
from mlxmtp.exactness.guarantee import Guarantee
from tests.cli.fake import STATS, Engine

STATS_KEYS = {
    "reused_tokens",
    "rounds", "drafted", "accepted", "tokens_per_round", "acceptance_by_depth", "ttft_s", "prefill_tps",
    "decode_tps", "draft_s", "verify_s", "other_s", "peak_memory_bytes", "evaluations", "timed_rounds",
    "drafted_by_depth", "policy", "looked_up", "looked_up_accepted", "narrowed", "longest_pause_s",
    "tokens_by_sequences",
}  # fmt: skip
JSON_KEYS = {"text", "tokens", "prompt_tokens", "finish_reason", "model", "head", "stats", "promise"}


def test_text_on_standard_output_statistics_on_standard_error(generate):
    ran = generate()
    assert (ran.code, ran.out) == (0, "Hello, world\n")
    assert ran.err.splitlines() == [
        "",
        "model   fake with its qwen3_5 head",
        "prompt  12 tokens at 412 tok/s, first token after 0.03 s",
        "output  2 tokens at 98.7 tok/s (stop)",
        "MTP     2.50 tokens a round; drafts accepted at depth 1, 2, ...: 90%, 75%, 60%",
        "exact   token-identical to plain decoding",
        "time    verify 70%, draft 20%, other 10% (estimated from 2 of 4 rounds)",
        "memory  68.0 MB at the peak",
    ]


def test_text_that_ends_its_line_gets_no_second_one(generate):
    assert generate(engine=Engine(texts=["a\n"])).out == "a\n"


def test_nothing_generated_prints_nothing(generate):
    assert generate(engine=Engine(texts=[""])).out == ""


def test_text_is_flushed_as_it_comes(generate, monkeypatch):
    class Out(io.StringIO):
        flushed: list[str] = []  # noqa: RUF012

        def flush(self) -> None:
            self.flushed.append(self.getvalue())

    monkeypatch.setattr(sys, "stdout", Out())
    generate(engine=Engine(texts=["a", "b"]))
    assert Out.flushed[:2] == ["a", "ab"]


def test_a_turn_of_one_round_has_no_rate(generate):
    ran = generate(engine=Engine(stats=replace(STATS, rounds=1, decode_tps=0.0)))
    assert "output  2 tokens (stop)\n" in ran.err


def test_json(generate):
    ran = generate("--json", engine=Engine(texts=["Grüße", " 🎈"]))
    answer = json.loads(ran.out)
    assert (ran.code, ran.err, ran.out.count("\n")) == (0, "", 1)
    assert set(answer) == JSON_KEYS
    assert set(answer["stats"]) == STATS_KEYS
    assert answer["text"] == "Grüße 🎈"
    assert (answer["tokens"], answer["prompt_tokens"], answer["finish_reason"]) == ([0, 1], 12, "stop")
    assert (answer["model"], answer["head"]) == ("fake", "qwen3_5")
    assert answer["stats"]["acceptance_by_depth"] == [0.9, 0.75, 0.6]


@pytest.mark.parametrize(
    ("options", "head", "plain_because"),
    [
        ([], None, "the checkpoint has no head"),
        (["--depth", "0"], "qwen3_5", "--depth is 0"),
    ],
)
def test_plain_decoding_says_why(generate, options, head, plain_because):
    plain = replace(STATS, drafted=0, accepted=0, acceptance_by_depth=(), draft_s=0.0, timed_rounds=0)
    engine = Engine(head=head, plain_because=None if head else plain_because, stats=plain)
    lines = generate(*options, engine=engine).err.splitlines()
    assert f"MTP     off: {plain_because}" in lines
    assert not any(line.startswith(("time", "exact")) for line in lines)

    answer = json.loads(generate(*options, "--json", engine=engine).out)
    assert set(answer) == JSON_KEYS - {"promise"} | {"plain_because"}
    assert (answer["head"], answer["plain_because"]) == (head, plain_because)


@pytest.mark.parametrize(
    ("options", "promise", "said"),
    [
        ([], "distribution", "same distribution as plain decoding; near-ties may differ"),
        (["--temp", "1"], "identical", "same distribution as plain decoding"),
        (["--temp", "1"], "distribution", "same distribution as plain decoding"),
        (["--temp", "1", "--seed", "3"], "identical", "token-identical to plain decoding"),
        (["--temp", "1", "--seed", "3", "--verify", "token"], "identical", "same distribution as plain decoding"),
        (["--identity", "strict"], "identical-one-row", "token-identical to plain decoding, by one-row arithmetic"),
        (
            ["--identity", "canonical"],
            "identical-canonical",
            "token-identical to plain decoding at canonical width",
        ),
    ],
)
def test_the_promise_is_told_as_far_as_it_holds(generate, options, promise, said):
    engine = Engine(guarantee=Guarantee(promise, 8, 1100))
    assert f"exact   {said}" in generate(*options, engine=engine).err.splitlines()
    assert engine.identity == (options[1] if "--identity" in options else "fast")
    assert json.loads(generate(*options, "--json", engine=engine).out)["promise"] == promise


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_useless_head_is_not_passed_over_in_silence(generate, options):
    engine = Engine(fit=SimpleNamespace(warning=lambda: "it does not belong"))
    assert "mlxmtp: warning: it does not belong" in generate(*options, engine=engine).err


def test_prompt_from_standard_input(run, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("Grüße\n".encode()), encoding="ascii"))
    engine = Engine()
    assert run("generate", "--prompt", "-", engine=engine).code == 0
    assert engine.calls[0]["prompt"] == "Grüße\n"


def test_prompt_that_is_not_text(run, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe")))
    for prompt in ("-", "\udcff"):
        engine = Engine()
        ran = run("generate", "--prompt", prompt, engine=engine)
        assert (ran.code, ran.out, engine.loaded) == (2, "", [])
        assert ran.err.startswith("mlxmtp: the prompt is not UTF-8 text")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (CheckpointError("no model in there"), 2),
        (HeadError("mtp.fc.weight has shape [3]"), 2),
        (OptionError("depth 9 is too deep"), 2),
        (PromptError("the prompt is empty"), 2),
        (NumericsError("the logits are not finite"), 2),
        (MemoryError(), 1),
        (RuntimeError("[malloc] Unable to allocate 9 bytes."), 1),
        (RuntimeError("[METAL] Command buffer execution failed: Impacting Interactivity"), 1),
        (RuntimeError("cudaGraphLaunch(graph, stream) failed: unspecified launch failure"), 1),
        (OSError(28, "No space left on device", "cache"), 1),
    ],
)
def test_an_error_is_one_line(generate, error, code):
    ran = generate(engine=Engine(texts=[], ending=error))
    assert (ran.code, ran.out) == (code, "")
    assert ran.err.startswith("mlxmtp: ")
    assert ran.err.count("\n") == 1
    assert str(error) in ran.err


@pytest.mark.parametrize("said", ["shapes do not match", "no such file: /data/cuda-models/x"])
def test_a_bug_is_not_dressed_up(generate, said):
    with pytest.raises(RuntimeError, match=said):
        generate(engine=Engine(ending=RuntimeError(said)))


def test_an_error_on_the_way_keeps_what_came(generate):
    ran = generate(engine=Engine(ending=NumericsError("the logits are not finite")))
    assert (ran.code, ran.out) == (2, "Hello, world\n")
    assert "output  2 tokens" in ran.err
    assert ran.err.endswith("mlxmtp: the logits are not finite\n")


def test_interrupt_keeps_what_came(generate):
    ran = generate(engine=Engine(ending=KeyboardInterrupt()))
    assert (ran.code, ran.out) == (130, "Hello, world\n")
    assert "output  2 tokens at 98.7 tok/s (interrupted)" in ran.err

    ran = generate("--json", engine=Engine(ending=KeyboardInterrupt()))
    assert ran.code == 130
    assert json.loads(ran.out)["finish_reason"] == "interrupted"


def test_interrupt_before_the_first_token(generate):
    ran = generate(engine=Engine(texts=[], ending=KeyboardInterrupt()))
    assert (ran.code, ran.out, ran.err) == (130, "", "")
