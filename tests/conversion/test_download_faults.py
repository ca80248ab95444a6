"""Faults of the Hub and the disk while a whole model is downloaded, by pull or before a conversion."""

import errno
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import constants

from tests.comparing import contents
from tests.conversion.faults import (
    HEAD,
    HEAD_SHARD,
    ORIGINAL,
    Run,
    assert_told,
    leftovers,
    small_disk,
    small_files,
)
from tests.grids import every_third
from tests.hub import Fault, Hub

API = f"GET /api/models/{ORIGINAL}"
RESOLVE = f"HEAD /{ORIGINAL}/resolve/.*/{HEAD_SHARD}"
ALWAYS = 99

pytestmark = pytest.mark.usefixtures("waits")


@pytest.fixture(params=["pull", "convert"])
def command(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[object, ...]:
    return (request.param, ORIGINAL) if request.param == "pull" else (request.param, ORIGINAL, tmp_path / "dest")


def assert_clean(tmp_path: Path) -> None:
    assert not (tmp_path / "dest").exists()
    assert not leftovers(tmp_path)
    assert not list((tmp_path / "hf").rglob("*.incomplete"))


def assert_succeeds(run: Run, command: tuple[object, ...], hub: Hub, original: Path, tmp_path: Path) -> None:
    code, errors = run(*command)
    assert code == 0, errors
    snapshot = tmp_path / "hf" / "hub" / "models--maker--original" / "snapshots" / hub.repos[ORIGINAL].main
    assert contents(snapshot) == contents(original)
    if command[0] == "convert":
        assert run("convert", snapshot, tmp_path / "reference")[0] == 0
        assert contents(tmp_path / "dest") == contents(tmp_path / "reference")


FAULTS: dict[str, tuple[list[Fault], str]] = {
    "api-401": ([Fault(API, "status", ALWAYS, 401)], "cannot be .*401.*`hf auth login`"),
    "api-429": ([Fault(API, "status", ALWAYS, 429)], "cannot be .*429 Too Many Requests"),
    "api-503": ([Fault(API, "status", ALWAYS, 503)], "cannot be .*503"),
    "shard-404": ([Fault(HEAD, "status", ALWAYS, 404)], "cannot be downloaded from the Hub: .*404"),
    "shard-503": ([Fault(HEAD, "status", ALWAYS, 503)], "cannot be downloaded from the Hub: .*503"),
    "shard-short": ([Fault(HEAD, "length", ALWAYS)], "cannot be downloaded from the Hub: Consistency check failed"),
    "shard-cut": ([Fault(HEAD, "cut", ALWAYS, 0)], "cannot be downloaded from the Hub: .*(closed|disconnected)"),
}


@pytest.mark.parametrize(("faults", "says"), every_third(FAULTS), ids=FAULTS)
def test_a_fault_of_the_server(
    models: Hub,
    original: Path,
    run: Run,
    command: tuple[object, ...],
    tmp_path: Path,
    faults: list[Fault],
    says: str,
) -> None:
    models.faults += [replace(fault) for fault in faults]
    assert_told(run(*command), f"{ORIGINAL}: .*{says}")
    assert_clean(tmp_path)
    models.faults.clear()
    assert_succeeds(run, command, models, original, tmp_path)


def test_a_gated_repo_wants_a_token(
    models: Hub, original: Path, run: Run, command: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models.add(ORIGINAL, original, gated=True)
    assert_told(run(*command), f"{ORIGINAL}: gated; accept its terms on the Hub, then run `hf auth login`")
    assert_clean(tmp_path)
    monkeypatch.setenv("HF_TOKEN", models.token)
    assert_succeeds(run, command, models, original, tmp_path)


def test_names_of_nothing(models: Hub, run: Run, tmp_path: Path) -> None:
    missing = "maker/nothing: no such folder, and no such repo on the Hub"
    assert_told(run("pull", "maker/nothing"), missing)
    assert_told(run("convert", "maker/nothing", tmp_path / "dest"), missing)
    assert_told(run("pull", ORIGINAL, "--revision", "nothing"), "the repo has no branch, tag or commit 'nothing'")
    assert_clean(tmp_path)


def test_a_cut_connection_is_taken_up_where_it_broke(
    models: Hub,
    original: Path,
    run: Run,
    command: tuple[object, ...],
    tmp_path: Path,
    waits: list[float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # the client drops an unfinished chunk
    models.faults += [Fault(HEAD, "status", value=429, retry_after=7), Fault(HEAD, "cut", value=50_000)]
    assert_succeeds(run, command, models, original, tmp_path)
    assert waits == [8, 1]
    assert models.sent(ORIGINAL) == sum(file.stat().st_size for file in original.iterdir())


def test_too_little_space_is_seen_before_a_download(
    models: Hub, original: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models.requests.clear()
    with small_disk(50_000):
        assert_told(run("pull", ORIGINAL), r"[\d.]+ .B to write, but /.* has 50.0 kB free; make room first")
    assert models.sent(ORIGINAL) == 0
    assert_clean(tmp_path)
    assert_succeeds(run, ("pull", ORIGINAL), models, original, tmp_path)


def test_a_write_that_the_kernel_refuses(
    models: Hub, original: Path, run: Run, command: tuple[object, ...], tmp_path: Path
) -> None:
    with small_files(50_000):
        told = run(*command)
    assert_told(told, f"{ORIGINAL}: cannot be downloaded from the Hub: .*{errno.EFBIG}", code=1)
    assert_clean(tmp_path)
    assert_succeeds(run, command, models, original, tmp_path)
