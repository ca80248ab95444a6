"""Heads that are models of their own: given by --head or resolved by the model's name, and always reported."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest

from mlxmtp.heads.gemma import repo
from tests import tiny
from tests.cli.conftest import Ran, assert_refused
from tests.grids import cases
from tests.hub import Fault, Hub

MODEL, ASSISTANT = "google/gemma-4-E2B-it", "google/gemma-4-E2B-it-assistant"
CONVERTED = "mlx-community/gemma-4-e2b-it-4bit"


@pytest.fixture(scope="session")
def trunk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.gemma_checkpoint(tmp_path_factory.mktemp("gemma") / "trunk", vocab=64)


@pytest.fixture(scope="session")
def assistant(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.assistant(tmp_path_factory.mktemp("gemma") / "assistant", vocab=64)


@pytest.fixture
def published(hub: Hub, trunk: Path, assistant: Path) -> Hub:
    for name, folder in ((MODEL, trunk), (CONVERTED, trunk), (ASSISTANT, assistant)):
        hub.add(name, folder)
    return hub


@pytest.mark.parametrize(
    ("name", "found"),
    [
        (MODEL, ASSISTANT),
        (CONVERTED, ASSISTANT),
        ("mlx-community/gemma-4-26b-a4b-it-8bit", "google/gemma-4-26B-A4B-it-assistant"),
        ("somebody/Gemma-4-31B-it-tuned", "google/gemma-4-31B-it-assistant"),
        ("google/gemma-4-E4B", None),
        ("google/gemma-4-E4B-italian", None),
        ("google/gemma-3-4b-it", None),
    ],
)
def test_names(name: str, found: str | None) -> None:
    assert repo([name]) == found


@pytest.mark.parametrize("model", cases([MODEL, CONVERTED], default=[CONVERTED]))
def test_a_known_models_head_is_found_and_named(published: Hub, answer: Callable[..., dict], main_, model: str) -> None:
    found = answer(model)
    assert (found["head"], found["head_source"]) == ("gemma4-assistant", ASSISTANT)
    assert found["head_found_by_name"] is True
    assert found["stats"]["drafted"] > 0
    assert found["tokens"] == answer(model, "--no-mtp")["tokens"]
    said = main_("generate", "--model", model, "--prompt", "hello", "--max-tokens", "4").err
    assert f"{model} with the gemma4-assistant head {ASSISTANT}, found by the model's name" in said


def test_it_is_fetched_once_and_works_offline(published: Hub, answer, monkeypatch) -> None:
    first = answer(MODEL)
    sent = published.sent(ASSISTANT)
    assert sent > 0
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert answer(MODEL)["tokens"] == first["tokens"]
    assert answer(MODEL)["head_source"] == ASSISTANT
    assert published.sent(ASSISTANT) == sent


@pytest.mark.exhaustive
def test_a_folder_asks_the_hub_for_nothing(published: Hub, answer, trunk: Path, tmp_path: Path) -> None:
    """The name proves nothing: the head is used if it is in the cache, else it is only named."""
    folder = Path(shutil.copytree(trunk, tmp_path / "gemma-4-e2b-it-4bit"))
    found = answer(folder)
    assert found["head"] is None
    assert f"--head {ASSISTANT}" in found["plain_because"]
    assert not published.requests
    answer(MODEL)
    assert answer(folder)["head_source"] == ASSISTANT


@pytest.mark.parametrize(("gated", "words"), [(False, "no such repo"), (True, "gated")])
def test_without_it_the_model_decodes_plainly(hub: Hub, answer, trunk, assistant, gated: bool, words: str) -> None:
    hub.add(MODEL, trunk)
    if gated:
        hub.add(ASSISTANT, assistant, gated=True)
    found = answer(MODEL)
    assert found["head"] is None
    assert ASSISTANT in found["plain_because"]
    assert words in found["plain_because"]


def test_inspect_says_what_will_be_done(published: Hub, cli: Callable[..., Ran]) -> None:
    line = f"mlxmtp  speculates: its head is {ASSISTANT}, found by the model's name, fetched at the first use"
    assert cli("inspect", MODEL).out.splitlines()[-1] == line
    cli("pull", MODEL)
    assert cli("inspect", MODEL).out.splitlines()[-1] == line.replace("fetched at the first use", "in the Hub cache")


def test_inspect_of_an_assistant(cli: Callable[..., Ran], assistant: Path) -> None:
    lines = cli("inspect", assistant).out.splitlines()
    assert lines[1] == "type    gemma4_assistant"
    assert lines[4].startswith("head    gemma4-assistant, 3 layers, drafter; ")
    assert "--head lends it" in lines[5]


def test_pull_brings_both(published: Hub, cli: Callable[..., Ran], answer, monkeypatch) -> None:
    ran = cli("pull", MODEL)
    assert ran.code == 0
    assert [Path(line).parent.parent.name for line in ran.out.splitlines()] == [
        "models--google--gemma-4-E2B-it",
        "models--google--gemma-4-E2B-it-assistant",
    ]
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert answer(MODEL)["head_source"] == ASSISTANT


def test_pull_keeps_a_model_whose_head_is_not_to_be_had(hub: Hub, cli: Callable[..., Ran], trunk: Path) -> None:
    hub.add(MODEL, trunk)
    ran = cli("pull", MODEL)
    assert (ran.code, ran.out.count("\n")) == (0, 1)
    assert "mlxmtp: warning: the model is here, its head is not: " in ran.err


@pytest.mark.parametrize("where", ["folder", "repo"])
def test_head_names_one(published: Hub, answer, trunk: Path, assistant: Path, where: str) -> None:
    name = str(assistant) if where == "folder" else ASSISTANT
    found = answer(trunk, "--head", name)
    assert (found["head"], found["head_source"]) == ("gemma4-assistant", name)
    assert found["tokens"] == answer(trunk)["tokens"]


@pytest.mark.exhaustive
def test_convert_and_attach_keep_it_beside_the_model(
    published: Hub, cli: Callable[..., Ran], answer, assistant: Path, trunk: Path, tmp_path: Path
) -> None:
    assert cli("convert", MODEL, tmp_path / "whole").code == 0
    cli("convert", trunk, tmp_path / "attached")
    assert cli("attach", tmp_path / "attached", "--from", ASSISTANT).code == 0
    cli("convert", trunk, tmp_path / "folder")
    assert cli("attach", tmp_path / "folder", "--from", assistant).code == 0
    tokens = answer(trunk, "--head", str(assistant))["tokens"]
    for name, source in (("whole", ASSISTANT), ("attached", ASSISTANT), ("folder", assistant.name)):
        assert json.loads((tmp_path / name / "config.json").read_text())["mtp_head"]["source"] == source
        found = answer(tmp_path / name)
        assert (found["head"], found["tokens"]) == ("gemma4-assistant", tokens)
        assert "head_source" not in found
    heads = {(tmp_path / name / "mtp.safetensors").read_bytes() for name in ("whole", "attached", "folder")}
    assert len(heads) == 1


@pytest.mark.exhaustive
def test_a_quantised_one(cli: Callable[..., Ran], answer, assistant: Path, trunk: Path, tmp_path: Path) -> None:
    cli("convert", trunk, tmp_path / "q", "-q", "--group-size", "32")
    assert cli("attach", tmp_path / "q", "--from", assistant).code == 0
    assert "8-bit affine" in cli("inspect", tmp_path / "q").out.splitlines()[4]
    assert answer(tmp_path / "q")["tokens"] == answer(tmp_path / "q", "--no-mtp")["tokens"]


def test_wrong_names_are_refused(cli: Callable[..., Ran], trunk: Path, assistant: Path, tmp_path: Path) -> None:
    generate = ("generate", "--prompt", "hi", "--model", trunk)
    assert_refused(cli(*generate, "--head", trunk), "has no MTP head")
    assert_refused(cli(*generate, "--head", tmp_path / "nowhere"), "nowhere")
    assert_refused(cli(*generate, "--head", assistant, "--no-mtp"), "leave one out")
    assert_refused(cli(*generate, "--head", "", "--no-mtp"), "leave one out")
    assert_refused(cli(*generate, "--head", ""), "the head's name is empty")
    other = tiny.assistant(tmp_path / "other", vocab=64, hidden=32)
    assert_refused(cli(*generate, "--head", other), "backbone_hidden_size 32", "64")


def test_a_part_of_an_assistant_is_as_good_as_none(published: Hub, cli, answer, trunk, tmp_path, monkeypatch) -> None:
    """An interrupted download neither stops the model nor makes `inspect` continue it."""
    folder = Path(shutil.copytree(trunk, tmp_path / "gemma-4-e2b-it"))
    huggingface_hub.snapshot_download(ASSISTANT, allow_patterns="config.json")
    seen = len(published.requests)
    assert f"--head {ASSISTANT}" in answer(folder)["plain_because"]
    assert "decodes plainly" in cli("inspect", folder).out
    assert len(published.requests) == seen
    assert cli("pull", MODEL).out.count("\n") == 2
    assert answer(folder)["head_source"] == ASSISTANT
    seen = len(published.requests)
    assert "in the Hub cache" in cli("inspect", folder).out
    assert len(published.requests) == seen


def test_a_fault_half_way_leaves_plain_decoding(published: Hub, answer) -> None:
    published.faults.append(Fault(f"{ASSISTANT}/resolve", "status", times=100, value=404))
    found = answer(MODEL)
    assert found["head"] is None
    assert ASSISTANT in found["plain_because"]
