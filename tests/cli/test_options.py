"""Bad options give one line with the value and what was expected, and exit code 2. No model is loaded."""

import pytest

from mlxmtp import GenerationOptions
from tests.cli.fake import Engine


@pytest.mark.parametrize(
    ("options", "found", "expected"),
    [
        (["--max-tokens", "0"], "found 0", "at least 1"),
        (["--max-tokens", "many"], "'many'", "a whole number"),
        (["--temp", "-1"], "-1.0", "at least 1e-6"),
        (["--temp", "nan"], "nan", "at least 1e-6"),
        (["--temp", "inf"], "inf", "at least 1e-6"),
        (["--temp", "warm"], "'warm'", "a number"),
        (["--top-p", "0"], "0.0", "(0, 1]"),
        (["--top-p", "1.5"], "1.5", "(0, 1]"),
        (["--top-k", "-2"], "-2", ">= 0"),
        (["--top-k", "2.5"], "'2.5'", "a whole number"),
        (["--min-p", "1.1"], "1.1", "[0, 1]"),
        (["--seed", "-1"], "-1", "[0, 2**64)"),
        (["--seed", "x"], "'x'", "a whole number"),
        (["--depth", "-1"], "found -1", "from 0 (plain) to 16"),
        (["--depth", "2", "--no-mtp"], "--no-mtp", "not allowed with argument --depth"),
        (["--verify", "hope"], "'hope'", "seeded"),
        (["--max", "3"], "--max", "unrecognized"),
        (["--colour"], "--colour", "unrecognized"),
    ],
)
def test_bad_options(generate, options, found, expected):
    engine = Engine()
    ran = generate(*options, engine=engine)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("mlxmtp: ")
    assert found in ran.err
    assert expected in ran.err
    assert "Traceback" not in ran.err
    assert engine.loaded == []


def test_a_prompt_is_required(run):
    ran = run("generate")
    assert (ran.code, ran.out) == (2, "")
    assert "required: --prompt" in ran.err
    assert "Try 'mlxmtp generate --help'" in ran.err


def test_unknown_command(run):
    ran = run("conjure")
    assert (ran.code, ran.out) == (2, "")
    assert "'conjure'" in ran.err


def test_defaults(generate):
    engine = Engine()
    assert generate(engine=engine).code == 0
    assert engine.loaded == [(None, True)]
    assert engine.calls == [{"prompt": "hi", "options": GenerationOptions(max_tokens=256), "raw": False}]


def test_every_option_reaches_the_engine(generate):
    engine = Engine()
    options = (
        "--model owner/name --raw --max-tokens 7 --temp 0.7 --top-p 0.9 --top-k 40 --min-p 0.05 --seed 11 "
        "--depth 2 --verify block --stop A --stop B --draft-vocab 300"
    )
    assert generate(*options.split(), engine=engine).code == 0
    (call,) = engine.calls
    assert (engine.loaded, engine.draft_vocab) == ([("owner/name", True)], "300")
    sampling = {"temperature": 0.7, "top_p": 0.9, "top_k": 40, "min_p": 0.05, "seed": 11}
    assert call["options"] == GenerationOptions(**sampling, max_tokens=7, depth=2, verify="block", stop=("A", "B"))
    assert call["raw"]


def test_no_mtp_does_not_even_load_the_head(generate):
    engine = Engine()
    generate("--no-mtp", "--model", "maker/here", engine=engine)
    assert engine.loaded == [("maker/here", False)]
    assert engine.calls[0]["options"].depth == 0
