"""`mlxmtp completion`: in a real bash; the other shells' scripts by their lines."""

import shutil
import subprocess
from pathlib import Path

import pytest


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes_commands_options_choices_and_models(cli, tmp_path):
    cache = tmp_path / "cache"
    for name in ("models--maker--one-4bit", "models--maker--$(touch x)", "datasets--maker--data"):
        (cache / name).mkdir(parents=True)
    (tmp_path / "my model").mkdir()
    script = Path(tmp_path / "completion.bash")
    script.write_text(cli("completion", "bash").out)
    for words, expected in (
        ("mlxmtp comp", ["completion"]),
        ("mlxmtp generate --pro", ["--prompt"]),
        ("mlxmtp generate --model ma", ["maker/one-4bit"]),
        ("mlxmtp chat --model de", ["demo"]),
        ("mlxmtp chat --model my", ["my model"]),
        ("mlxmtp chat --identity st", ["strict"]),
        ("mlxmtp rm ma", ["maker/one-4bit"]),
        ("mlxmtp completion f", ["fish"]),
        ("mlxmtp bench --workload x", []),
    ):
        line = f"source {script}; COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _mlxmtp; "
        command = ["bash", "--norc", "-c", line + 'printf "%s\\n" "${COMPREPLY[@]}"']
        environment = {"HF_HUB_CACHE": str(cache), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
        ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=20)
        assert (ran.stdout.split("\n")[:-1], ran.stderr) == (expected or [""], ""), words
    assert not (tmp_path / "x").exists()


def test_zsh_and_fish_have_the_same_commands(cli):
    zsh, fish = (cli("completion", shell).out for shell in ("zsh", "fish"))
    assert "bashcompinit" in zsh
    assert "complete -F _mlxmtp mlxmtp" in zsh
    assert "-n '__fish_seen_subcommand_from chat' -l model -r -a '(__mlxmtp_models)'" in fish
    assert "-l identity -r -f -a 'fast strict canonical'" in fish
