"""`mlxmtp pull`: the checks before a download, the downloaded files, and what a failed download leaves."""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import huggingface_hub
import pytest

from mlxmtp import files, machine
from tests.cli.conftest import ROOT, Ran, assert_refused
from tests.comparing import contents
from tests.hub import Fault, Hub

MODEL = "maker/original"
SHARDS = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]


@pytest.fixture
def model(hub: Hub, raw: Path, tmp_path: Path) -> Path:
    """A repo with files that no model needs."""
    folder = Path(shutil.copytree(raw, tmp_path / "repo"))
    (folder / "model-q4.gguf").write_bytes(bytes(1000))
    (folder / "pytorch_model.bin").write_bytes(bytes(1000))
    hub.add(MODEL, folder)
    return folder


def size(folder: Path) -> int:
    return sum(len(content) for content in contents(folder).values())


def own(ran: Ran) -> list[str]:
    """Standard error without the client's progress bars."""
    return [line for line in ran.err.splitlines() if line.startswith(("mlxmtp: ", f"{MODEL}: "))]


def fetched(hub: Hub) -> dict[str, int]:
    """Bytes that were sent of each shard."""
    shards = [request for request in hub.requests if request.path.startswith("/cdn/") and request.sent_bytes]
    return {request.path.rpartition("/")[2]: request.sent_bytes for request in shards}


def test_a_model_is_downloaded_once(cli, answer, hub, raw, model, monkeypatch):
    ran = cli("pull", MODEL)
    snapshot = Path(ran.out.removesuffix("\n"))
    assert (ran.code, own(ran)) == (0, [f"{MODEL}: 697.2 kB, 697.2 kB to download"])
    assert contents(snapshot) == contents(raw)
    assert hub.sent(MODEL) == size(raw)
    ran = cli("pull", MODEL)
    assert (ran.code, ran.out, own(ran)) == (0, f"{snapshot}\n", [f"{MODEL}: 697.2 kB, all of it in the Hub cache"])
    assert hub.sent(MODEL) == size(raw)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert answer(MODEL)["tokens"] == answer(raw)["tokens"]


def test_only_what_changed_is_to_download(cli, hub, model):
    cli("pull", MODEL)
    (model / "config.json").write_text((model / "config.json").read_text() + "\n")
    commit = hub.add(MODEL, model, commit="ab" * 20)
    before = hub.sent(MODEL)
    assert cli("pull", MODEL).out.endswith(f"{commit}\n")
    assert hub.sent(MODEL) == before + (model / "config.json").stat().st_size


def test_another_revision(cli, hub, raw, model):
    old = hub.repos[MODEL].main
    hub.add(MODEL, raw, commit="cd" * 20)
    assert cli("pull", MODEL, "--revision", old).out.endswith(f"{old}\n")
    assert cli("pull", MODEL).out.endswith(f"{'cd' * 20}\n")


def test_a_model_too_large_for_the_memory(cli, hub, model, monkeypatch):
    memory = 800_000
    monkeypatch.setattr(machine, "memory_bytes", lambda: memory)
    warning = "683.2 kB of weights will not run in this machine's 800.0 kB of memory"
    assert_refused(cli("pull", MODEL), f"{MODEL}: {warning}; --force downloads it all the same")
    assert hub.sent(MODEL) == 0
    ran = cli("pull", MODEL, "--force")
    assert (ran.code, own(ran)[0]) == (0, f"mlxmtp: warning: {warning}")
    memory = 1_000_000
    assert "warning" not in cli("pull", MODEL).err


def test_a_model_too_large_for_the_disk(cli, hub, model, monkeypatch):
    free = files.SPARE_BYTES + 697_000
    usage = shutil.disk_usage("/")._replace(free=free)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert_refused(cli("pull", MODEL), "697.2 kB to write, but ", "67.8 MB free; make room first")
    assert hub.sent(MODEL) == 0
    usage = usage._replace(free=free + 1000)
    assert cli("pull", MODEL).code == 0
    usage = usage._replace(free=0)
    assert cli("pull", MODEL).code == 0  # nothing is to be written


def test_what_a_broken_download_has_is_kept(cli, hub, model, raw):
    hub.faults.append(Fault(rf"GET /cdn/.*{SHARDS[1]}", "length", value=1000))
    ran = cli("pull", MODEL)
    assert (ran.code, ran.out) == (2, "")
    assert own(ran)[-1].startswith(f"mlxmtp: {MODEL}: cannot be downloaded from the Hub: ")
    assert "Traceback" not in ran.err
    while any(request.status == 0 for request in hub.requests):
        time.sleep(0.01)
    done = fetched(hub).keys() - {SHARDS[1]}
    hub.requests.clear()
    ran = cli("pull", MODEL)
    assert (ran.code, contents(Path(ran.out[:-1]))) == (0, contents(raw))
    assert SHARDS[1] in fetched(hub)
    assert not done & fetched(hub).keys()


def test_a_damaged_file_is_downloaded_again(cli, hub, model, raw):
    shard = Path(cli("pull", MODEL).out[:-1]) / SHARDS[2]
    shard.resolve().write_bytes(b"")
    assert "download it again" in cli("generate", "--model", MODEL, "--prompt", "hi").err
    hub.requests.clear()
    ran = cli("pull", MODEL)
    assert (ran.code, shard.read_bytes()) == (0, (raw / SHARDS[2]).read_bytes())
    assert own(ran) == [f"{MODEL}: 697.2 kB, {shard.stat().st_size / 1000:.1f} kB to download"]
    assert fetched(hub).keys() == {SHARDS[2]}


def test_control_c_does_not_wait_for_the_rest(hub, model, raw, tmp_path):
    """The client's threads go on with their files, and the process would wait for them."""
    hub.faults.append(Fault(rf"GET /cdn/.*{SHARDS[1]}", "slow", value=600))
    code = f"import sys, mlxmtp.cli as cli; cli.GRACE_S = 0.2; sys.exit(cli.main(['pull', {MODEL!r}]))"
    environment = hub.environment(tmp_path / "hf") | {"HF_HUB_DOWNLOAD_TIMEOUT": "600"}
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, cwd=ROOT, env=environment, text=True, stderr=subprocess.PIPE) as process:
        while process.poll() is None and fetched(hub).keys() != set(SHARDS):
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        try:
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("no-such", "no-such: expected a Hub repo (owner/name); a folder needs no download"),
        ("./no/such", "./no/such: expected a Hub repo (owner/name)"),
        ("maker/nothing", "maker/nothing: no such folder, and no such repo on the Hub"),
        ("maker/gguf", "maker/gguf: no model in the repo; it holds model-q4.gguf; expected a model in Hugging Face"),
    ],
)
def test_names_of_nothing(cli, hub, tmp_path, name, says):
    (tmp_path / "gguf").mkdir()
    (tmp_path / "gguf" / "model-q4.gguf").write_bytes(b"GGUF")
    hub.add("maker/gguf", tmp_path / "gguf")
    assert_refused(cli("pull", name), says)
    assert not Path(huggingface_hub.constants.HF_HUB_CACHE).exists()


def test_no_access_and_no_connection(cli, hub, raw, monkeypatch):
    hub.add(MODEL, raw, gated=True)
    ran = cli("pull", MODEL)
    assert (ran.code, ran.out) == (2, "")
    assert own(ran)[-1] == f"mlxmtp: {MODEL}: gated; accept its terms on the Hub, then run `hf auth login`"
    assert_refused(cli("pull", MODEL, "--revision", "v9"), f"{MODEL}: the repo has no branch, tag or commit 'v9'")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert_refused(cli("pull", MODEL), f"{MODEL}: cannot be reached on the Hub", "offline mode is enabled")
