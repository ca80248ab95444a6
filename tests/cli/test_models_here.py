"""`mlxmtp list` and `mlxmtp rm`: the models of this machine; a bare `mlxmtp`; names refused before imports."""

import io
import json
import os
import shutil
import sys
from pathlib import Path

import huggingface_hub
import pytest

from mlxmtp import machine
from mlxmtp.cli import chat
from mlxmtp.files import try_lock
from tests.cli.conftest import assert_refused

MODEL = "maker/original"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def cached(hub, raw, capsys) -> Path:
    """The folder of a downloaded model in the Hub cache; beside it a repo with a longer name."""
    hub.add(MODEL, raw)
    huggingface_hub.snapshot_download(MODEL)
    capsys.readouterr()  # the client's progress bars
    cache = Path(huggingface_hub.constants.HF_HUB_CACHE)
    shutil.copytree(cache / "models--maker--original", cache / "models--maker--original-4bit", symlinks=True)
    return cache / "models--maker--original"


def test_the_models_of_cache_and_folders_are_listed(cli, cached, stripped, tmp_path, monkeypatch):
    (tmp_path / "models" / "broken").mkdir(parents=True)
    (tmp_path / "models" / "broken" / "config.json").write_text("{")
    (tmp_path / "models" / "stripped").symlink_to(stripped)
    ran = cli("list", tmp_path / "models", "--json")
    listed = {one["name"]: one for one in json.loads(ran.out)["models"]}
    folder = str(tmp_path / "models")
    assert list(listed) == ["demo", MODEL, f"{MODEL}-4bit", f"{folder}/broken", f"{folder}/stripped"]
    assert [one["support"] for one in listed.values()] == ["speculates"] * 3 + ["refused", "plain"]
    assert listed[MODEL]["fits"]
    monkeypatch.setattr(machine, "usable_memory", lambda: 1_000_000)
    lines = cli("list", tmp_path / "models").out.splitlines()
    assert "too large here" in lines[0]
    assert lines[1].endswith("675.1 kB  qwen-mtp        fits"), lines[1]
    assert "cannot be used" in lines[3]
    assert lines[-1] == "models can take 1.0 MB on this machine"
    assert_refused(cli("list", tmp_path / "nowhere"), "no such folder")


def test_a_model_is_removed_from_the_cache_alone(cli, cached):
    beside = cached.with_name(cached.name + "-4bit")
    ran = cli("rm", MODEL, "-y")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith(f"{MODEL}: removed, ")
    assert ran.out.endswith(" kB freed\n")
    assert not cached.exists()
    assert list(beside.glob("snapshots/*/config.json"))
    assert_refused(cli("rm", MODEL, "-y"), "not in the Hub cache")


def test_removal_asks_first(cli, cached, monkeypatch):
    for answer, remains in (("\n", True), ("no\n", True), ("y\n", False)):
        monkeypatch.setattr(sys, "stdin", Terminal(answer))
        ran = cli("rm", MODEL)
        assert f"remove {MODEL}, " in ran.err, answer
        assert cached.exists() == remains, answer
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    assert_refused(cli("rm", f"{MODEL}-4bit"), "add -y")


def test_what_is_not_the_caches_own_stays(cli, cached, raw, tmp_path):
    outside = tmp_path / "outside"
    outside.write_text("kept")
    (cached / "blobs" / "link").symlink_to(outside)
    for name in (str(raw), "..", "../..", "maker", "demo"):
        assert_refused(cli("rm", name, "-y"), "expected a Hub repo")
    cached.with_name("models--maker--link").symlink_to(raw)
    assert_refused(cli("rm", "maker/link", "-y"), "is a link")
    locks = cached.parent / ".locks" / cached.name
    locks.mkdir(parents=True, exist_ok=True)
    held = os.open(locks / "held.lock", os.O_RDWR | os.O_CREAT)
    assert try_lock(held)
    assert_refused(cli("rm", MODEL, "-y"), "being downloaded")
    os.close(held)
    assert cached.exists()
    assert cli("rm", MODEL, "-y").code == 0
    assert outside.read_text() == "kept"
    assert (raw / "config.json").exists()


def test_without_a_command_a_terminal_gets_the_chat(cli, monkeypatch):
    opened = []
    monkeypatch.setattr(chat, "on_a_terminal", lambda: True)
    monkeypatch.setattr("mlxmtp_tui.app.run", lambda options, resumed, mouse: opened.append(options))
    ran = cli()
    assert (ran.code, ran.err, [one.choose for one in opened]) == (0, "", [True])


def test_a_name_that_can_be_no_model_is_refused_before_the_imports(program):
    ran = program("generate", "--model", "./nowhere", "--prompt", "x", env={**os.environ, "PYTHONVERBOSE": "1"})
    assert ran.returncode == 2
    assert "mlxmtp: ./nowhere: no such folder; " in ran.stderr
    assert "import 'mlx" in ran.stderr
    assert "import 'mlx.core'" not in ran.stderr
    assert "import 'huggingface_hub'" not in ran.stderr


def test_an_unknown_option_is_named_first(cli):
    for arguments, said in (
        (("generate", "--nosuch"), "unrecognized option --nosuch"),
        (("generate", "--promt", "x"), "unrecognized option --promt; did you mean --prompt?"),
        (("generate", "-z"), "unrecognized option -z"),
        (("attach", "--form=x"), "unrecognized option --form; did you mean --from?"),
    ):
        ran = cli(*arguments)
        assert (ran.code, ran.err.splitlines()[0]) == (2, f"mlxmtp: {said}"), arguments
    ran = cli("generate", "--temp", "-1", "--prompt", "x")
    assert "unrecognized option" not in ran.err


def test_without_a_network_one_line_says_so(cli, hub, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    said = "no connection to http://127.0.0.1:9; a folder, or a model in the Hub cache, needs none"
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", "http://127.0.0.1:9")
    for command in (("inspect", "maker/model"), ("generate", "--model", "maker/model", "--prompt", "x")):
        assert_refused(
            cli(*command), "maker/model: ", " from the Hub: " if command[0] == "generate" else " on the Hub: ", said
        )
