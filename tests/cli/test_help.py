"""The help of the program, and that it imports nothing heavy."""

import re
import subprocess
import sys
from importlib.metadata import entry_points

import pytest

import mlxmtp
from tests.cli.conftest import ROOT

OPTIONS = {
    "generate": [
        "--model PATH|REPO", "--prompt TEXT|-", "--raw", "--max-tokens N", "--stop S", "--json", "--temp T",
        "--top-p P", "--top-k K", "--min-p M", "--seed S", "--depth N", "--no-mtp",
        "--identity {fast,strict,canonical}",
    ],
    "chat": [
        "--model PATH|REPO", "--head PATH|REPO", "--system TEXT", "--max-tokens N", "--temp T", "--top-p P",
        "--top-k K", "--min-p M", "--seed S", "--depth N", "--no-mtp", "--identity {fast,strict,canonical}",
        "--continue", "--resume CHAT", "--no-mouse",
    ],
    "serve": [
        "--model PATH|REPO", "--head PATH|REPO", "--depth N", "--no-mtp", "--identity {fast,strict,canonical}",
        "--host ADDRESS", "--port N", "--api-key KEY", "--cors ORIGIN", "--queue N", "--max-body BYTES",
        "--parallel N|auto",
        "--cache-bytes BYTES", "--cache-dir FOLDER", "--temp T", "--top-p P", "--top-k K", "--min-p M",
    ],
    "doctor": ["--model PATH|REPO", "--head PATH|REPO", "--json"],
    "bench": [
        "--model PATH|REPO", "--head PATH|REPO", "--no-mtp", "--out FOLDER", "--json", "--compare A B",
        "--prompts FILE", "--workload NAME", "--limit N", "--tokens N", "--repeats N", "--depths [K ...]",
        "--temps T [T ...]", "--verify {token,block,seeded}", "--contexts [N ...]", "--synthetic-acceptance A",
    ],
    "inspect": ["PATH|REPO", "--json", "--check"],
    "convert": [
        "SOURCE", "DEST", "-q, --quantize", "--bits N", "--group-size N", "--mode {affine,mxfp4,nvfp4,mxfp8}",
        "--head-bits {4,8,16}", "--dtype {bfloat16,float16,float32}", "--upload-repo REPO",
    ],
    "attach": ["TRUNK", "--from ORIGINAL", "--revision R", "--head-bits {4,8,16}", "--out FOLDER", "--no-check"],
    "pull": ["REPO", "--revision R", "--force"],
    "list": ["FOLDER", "--json"],
    "rm": ["REPO", "-y, --yes"],
    "completion": ["{bash,zsh,fish}"],
    "connect": ["CLIENT", "--url URL", "--model NAME", "--context N", "--api-key KEY", "--write"],
}  # fmt: skip

HIDDEN = {
    "generate": ["--verify {token,block,seeded}", "--draft-vocab N|FILE|full"],
    "chat": ["--draft-vocab N|FILE|full"],
    "serve": ["--draft-vocab N|FILE|full"],
}
"""Options for experiments: `--help` leaves them out, `--help-all` shows them."""


def test_help_names_the_commands_and_an_example(run):
    ran = run("--help")
    assert ran.code == 0
    for command in OPTIONS:
        assert re.search(rf"\n    {command}\s", ran.out)
    assert "Example:\n  mlxmtp generate" in ran.out


@pytest.mark.parametrize("command", OPTIONS)
def test_help_of_a_command_names_every_option_and_an_example(run, command):
    ran = run(command, "--help")
    assert ran.code == 0
    assert f"Example:\n  mlxmtp {command} " in ran.out
    for option in OPTIONS[command]:
        assert f"\n  {option}" in ran.out


@pytest.mark.parametrize("command", HIDDEN)
def test_options_for_experiments_are_in_help_all_only(run, command):
    short, whole = run(command, "--help"), run(command, "--help-all")
    assert (short.code, whole.code) == (0, 0)
    assert "--help-all" in short.out
    for option in HIDDEN[command]:
        assert option.split()[0] not in short.out
        assert f"\n  {option}" in whole.out
    for option in OPTIONS[command]:
        assert f"\n  {option}" in whole.out


def test_version(run):
    assert run("--version").out == f"mlxmtp {mlxmtp.__version__}\n"


def test_no_command_prints_the_help_and_is_bad_input(run):
    ran = run()
    assert (ran.code, ran.out) == (2, "")
    assert "usage: mlxmtp" in ran.err


def test_help_imports_nothing_heavy():
    commands = [[command, "--help"] for command in OPTIONS]
    code = (
        "import sys, contextlib\n"
        "from mlxmtp.cli import main\n"
        f"for command in {commands}:\n"
        "    with contextlib.suppress(SystemExit): main(command)\n"
        "heavy = {'mlx', 'mlx_lm', 'numpy', 'transformers', 'tokenizers', 'huggingface_hub'}\n"
        "sys.exit(repr(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr


def test_module_is_the_same_program(program, run):
    ran = program("--help")
    assert ran.returncode == 0
    assert ran.stdout == run("--help").out


def test_installed_script_is_the_same_program():
    scripts = entry_points(group="console_scripts", name="mlxmtp")
    if not scripts:
        pytest.skip("the package is not installed, only on the path")
    assert {script.value for script in scripts} == {"mlxmtp.cli:main"}
