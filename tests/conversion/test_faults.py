"""Faults of the Hub while attach fetches a head: told in a line, nothing half-made, and the next run succeeds."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import constants

from mlxmtp.checkpoints.remote import RemoteRepo
from tests.comparing import contents
from tests.conversion.faults import (
    HEAD,
    HEAD_SHARD,
    ORIGINAL,
    SAMPLE_SHARD,
    STRIPPED,
    Attached,
    Run,
    assert_told,
    attached,
    in_the_head,
    kept,
    leftovers,
)
from tests.grids import every_third
from tests.hub import Fault, Hub

ATTACH = ("attach", STRIPPED, "--from", ORIGINAL, "--no-check")
API = f"GET /api/models/{ORIGINAL}"
CONFIG = f"GET /{ORIGINAL}/resolve/.*/config.json"
ALWAYS = 99

pytestmark = pytest.mark.usefixtures("waits")


@pytest.fixture
def assert_refused(models: Hub, data: Path, run: Run, tmp_path: Path) -> Callable[..., None]:
    """`attach` fails with a line that says a regex, and changes neither the Hub cache nor our own heads."""
    cache = tmp_path / "hf" / "hub"
    before = contents(cache)

    def check(says: str, *arguments: str, code: int = 2) -> None:
        assert_told(run(*ATTACH, *arguments), says, code)
        assert contents(cache) == before
        assert not (data / "heads").exists()
        assert not leftovers(data)

    return check


@pytest.fixture
def assert_succeeds(models: Hub, data: Path, run: Run, whole: Attached, tmp_path: Path) -> Callable[[], None]:
    """`attach` does what it does where nothing ever failed."""
    cache = tmp_path / "hf" / "hub"
    before = contents(cache)

    def check() -> None:
        code, errors = run(*ATTACH)
        assert code == 0, errors
        assert attached(kept(models)) == whole
        assert contents(cache) == before
        assert not list((data / "partial").iterdir())
        assert not leftovers(data)

    return check


SERVER: dict[str, tuple[list[Fault], str]] = {
    "401": ([Fault(API, "status", value=401)], "cannot be reached on the Hub: .*401.*`hf auth login`"),
    "429": ([Fault(API, "status", value=429)], "cannot be reached on the Hub: 429 Too Many Requests"),
    "503": ([Fault(API, "status", value=503)], "cannot be reached on the Hub: .*503"),
    "config-corrupt": ([Fault(CONFIG, "corrupt")], "/config.json: not valid JSON"),
    "config-short": (
        [Fault(CONFIG, "length")],
        r": \d+ bytes of config.json came, expected \d+; run the command again",
    ),
    "shard-404": ([Fault(HEAD, "status", ALWAYS, 404)], f": cannot read {HEAD_SHARD} from the Hub: .*404"),
    "shard-429": (
        [Fault(HEAD, "status", ALWAYS, 429)],
        f": cannot read {HEAD_SHARD} from the Hub: 429 Too Many Requests",
    ),
    "shard-503": ([Fault(HEAD, "status", ALWAYS, 503)], f": cannot read {HEAD_SHARD} from the Hub: .*503"),
    "length-corrupt": ([Fault(HEAD, "corrupt", value=6)], f"/{HEAD_SHARD}: not a complete safetensors file"),
    "header-corrupt": (
        [Fault(HEAD, "corrupt", 1, 99), Fault(HEAD, "corrupt")],
        f"/{HEAD_SHARD}: .*header cannot be read",
    ),
    "header-short": ([Fault(HEAD, "length", 1, 8), Fault(HEAD, "length")], f" bytes of {HEAD_SHARD} came, expected "),
    "no-ranges": ([Fault(HEAD, "ignore_range")], f": the server does not send parts of {HEAD_SHARD}; `pull` it whole"),
    "head-no-ranges": (in_the_head(Fault(HEAD, "ignore_range")), f": the server does not send parts of {HEAD_SHARD}"),
    "head-short": (in_the_head(Fault(HEAD, "length")), f" bytes of {HEAD_SHARD} came, expected .*; run the command"),
    "head-cut": (in_the_head(Fault(HEAD, "cut", ALWAYS, 0)), f"broke 6 times while {HEAD_SHARD} .*; run the command"),
}


@pytest.mark.parametrize(("faults", "says"), every_third(SERVER), ids=SERVER)
def test_a_fault_of_the_server(
    models: Hub,
    faults: list[Fault],
    says: str,
    assert_refused: Callable[..., None],
    assert_succeeds: Callable[[], None],
) -> None:
    models.faults += [replace(fault) for fault in faults]  # they are used up
    assert_refused(f"{ORIGINAL}.*{says}")
    models.faults.clear()
    assert_succeeds()


def shorter(folder: Path) -> None:
    shard = folder / HEAD_SHARD
    shard.write_bytes(shard.read_bytes()[:-1])


def index_of(text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / "model.safetensors.index.json").write_text(text)


def config_of(text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / "config.json").write_text(text)


def without_a_head(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    where = {name: file for name, file in json.loads(index.read_text())["weight_map"].items() if file != HEAD_SHARD}
    index.write_text(json.dumps({"weight_map": where}))
    shutil.copy(folder / SAMPLE_SHARD, folder / HEAD_SHARD)


REPO: dict[str, tuple[Callable[[Path], object], str]] = {
    "no-shard": (lambda folder: (folder / HEAD_SHARD).unlink(), f"{ORIGINAL}: missing {HEAD_SHARD}; "),
    "short-shard": (shorter, rf"{ORIGINAL}/{HEAD_SHARD}: \d+ bytes, expected \d+: the file is cut short"),
    "empty-shard": (
        lambda folder: (folder / HEAD_SHARD).write_bytes(b""),
        f"/{HEAD_SHARD}: not a complete safetensors",
    ),
    "index-of-numbers": (index_of('{"weight_map": {"a": 1}}'), f"{ORIGINAL}/.*index.json: cannot be read as an index"),
    "broken-index": (index_of("["), f"{ORIGINAL}/.*index.json: cannot be read as an index"),
    "broken-config": (config_of("{"), f"{ORIGINAL}/config.json: not valid JSON"),
    "empty-config": (config_of(""), f"{ORIGINAL}/config.json: not valid JSON"),
    "no-config": (lambda folder: (folder / "config.json").unlink(), f"{ORIGINAL}: no config.json in the repo"),
    "no-head": (without_a_head, f"{ORIGINAL} has no MTP head .*; name the model that it was made from"),
}


@pytest.mark.parametrize(("damage", "says"), REPO.values(), ids=REPO)
def test_a_damaged_repo(
    models: Hub,
    original: Path,
    damage: Callable[[Path], object],
    says: str,
    tmp_path: Path,
    assert_refused: Callable[..., None],
    assert_succeeds: Callable[[], None],
) -> None:
    damaged = Path(shutil.copytree(original, tmp_path / "damaged"))
    damage(damaged)
    models.add(ORIGINAL, damaged)
    assert_refused(says)
    models.add(ORIGINAL, original)
    assert_succeeds()


def test_names_of_nothing(assert_refused: Callable[..., None]) -> None:
    assert_refused("the repo has no branch, tag or commit 'nothing'", "--revision", "nothing")
    assert_refused("maker/nothing: no such folder, and no such repo on the Hub", "--from", "maker/nothing")
    assert_refused("nothing: no such folder; expected", "--from", "nothing")


def test_a_gated_repo_wants_a_token(
    models: Hub,
    original: Path,
    monkeypatch: pytest.MonkeyPatch,
    assert_refused: Callable[..., None],
    assert_succeeds: Callable[[], None],
) -> None:
    models.add(ORIGINAL, original, gated=True)
    assert_refused(f"{ORIGINAL}: gated; accept its terms on the Hub, then run `hf auth login`")
    monkeypatch.setenv("HF_TOKEN", models.token)
    assert_succeeds()


def test_a_file_that_goes_while_it_is_read(
    models: Hub,
    original: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    assert_refused: Callable[..., None],
    assert_succeeds: Callable[[], None],
) -> None:
    folder = Path(shutil.copytree(original, tmp_path / "going"))
    models.add(ORIGINAL, folder)

    def last(self: RemoteRepo, file: str) -> object:
        (folder / file).unlink()
        return header(self, file)

    header = RemoteRepo.header
    with monkeypatch.context() as patched:
        patched.setattr(RemoteRepo, "header", last)
        assert_refused(f"{ORIGINAL}: cannot read {SAMPLE_SHARD} from the Hub: no such file, http.*/{SAMPLE_SHARD}")
    models.add(ORIGINAL, original)
    assert_succeeds()


def test_a_server_is_waited_for_as_long_as_it_says(
    models: Hub, waits: list[float], assert_succeeds: Callable[[], None]
) -> None:
    models.faults += [Fault(HEAD, "status", times=2, value=429, retry_after=7), Fault(HEAD, "status", value=503)]
    assert_succeeds()
    assert waits == [8, 8, 4]  # a second more than it says, and its own pauses double meanwhile


def test_a_silent_server_counts_as_a_broken_connection(
    models: Hub, waits: list[float], monkeypatch: pytest.MonkeyPatch, assert_succeeds: Callable[[], None]
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    models.faults += in_the_head(Fault(HEAD, "slow", value=60))
    assert_succeeds()
    assert waits == [1]
