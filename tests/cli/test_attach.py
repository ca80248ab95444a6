"""`mlxmtp attach`: a model gets its head back, `generate` uses it, and a wrong head is refused."""

import shutil
from pathlib import Path

import huggingface_hub
import pytest

from tests import tiny
from tests.cli.conftest import ROOT, assert_refused
from tests.comparing import contents

MODEL, STRIPPED = "maker/original", "community/stripped"
DEMO = ROOT / "mlxmtp" / "demo"


@pytest.fixture
def trunk(stripped: Path, tmp_path: Path) -> Path:
    """A model without its head, to attach to."""
    return Path(shutil.copytree(stripped, tmp_path / "trunk"))


def damaged(source: Path, folder: Path) -> Path:
    """A model whose head has the columns of `fc` in the wrong order."""
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors*"))
    weights = tiny.load_weights(source)
    weights["mtp.fc.weight"] = weights["mtp.fc.weight"][:, ::-1]
    tiny.save_weights(folder, weights, made_by="pt")
    return folder


def test_to_a_folder(cli, report, answer, raw, trunk):
    before = contents(trunk)
    plain = answer(trunk)
    assert f"`mlxmtp attach {trunk} --from ORIGINAL` fetches it" in plain["plain_because"]
    ran = cli("attach", trunk, "--from", raw, "--no-check")
    assert (ran.code, ran.err, ran.out) == (0, "", f"{trunk}/mtp.safetensors: 70.4 kB\n")
    assert {name for name, content in contents(trunk).items() if content != before.get(name)} == {
        "mtp.safetensors",
        "config.json",
    }
    assert report(trunk)["head"]["source"] == raw.name
    mtp = answer(trunk)
    assert (mtp["head"], mtp["tokens"]) == ("qwen-mtp", plain["tokens"])
    assert mtp["stats"]["drafted"] > 0
    again = f"has a head already, in {trunk}/mtp.safetensors; remove that file to attach another"
    assert_refused(cli("attach", trunk, "--from", raw), again)


@pytest.mark.exhaustive
def test_to_a_model_of_the_cache(cli, report, answer, hub, data, raw, stripped):
    """`generate --model owner/name` then uses the head without an option."""
    hub.add(MODEL, raw)
    hub.add(STRIPPED, stripped)
    plain = answer(STRIPPED)
    assert (plain["head"], plain["stats"]["drafted"]) == (None, 0)
    assert f"`mlxmtp attach {STRIPPED} --from ORIGINAL`" in plain["plain_because"]
    cache = Path(huggingface_hub.constants.HF_HUB_CACHE)
    before = contents(cache)
    assert cli("attach", STRIPPED, "--from", MODEL, "--no-check").code == 0
    assert contents(cache) == before
    assert hub.sent(MODEL) < sum(file.stat().st_size for file in raw.glob("*.safetensors")) / 2
    mtp = answer(STRIPPED)
    assert (mtp["model"], mtp["head"], mtp["tokens"]) == (STRIPPED, "qwen-mtp", plain["tokens"])
    assert mtp["stats"]["drafted"] > 0
    assert answer(STRIPPED, "--no-mtp")["tokens"] == plain["tokens"]
    assert report(STRIPPED)["head"]["source"] == MODEL

    hub.add(STRIPPED, stripped, commit="cd" * 20)  # the model is published anew: the head was not made for that
    assert (answer(STRIPPED)["head"], report(STRIPPED)["verdict"]) == (None, "plain")


def test_out_leaves_the_trunk_as_it_was(cli, report, raw, trunk, tmp_path):
    before = contents(trunk)
    out = tmp_path / "out"
    assert cli("attach", trunk, "--from", raw, "--out", out, "--no-check").out.startswith(f"{out}/mtp.safetensors: ")
    assert contents(trunk) == before
    assert (report(out)["verdict"], report(trunk)["verdict"]) == ("speculates", "plain")
    assert {name for name, content in contents(out).items() if content != before.get(name)} == {
        "mtp.safetensors",
        "config.json",
    }
    assert_refused(cli("attach", trunk, "--from", raw, "--out", out), "exists already")
    assert_refused(cli("attach", trunk, "--from", raw, "--out", trunk / "new"), f"new is inside {trunk}")
    assert contents(trunk) == before


@pytest.mark.exhaustive
def test_it_checks_the_head_that_it_attached(cli, report, mlx_conversion, tmp_path):
    trunk = mlx_conversion(DEMO, head="none")
    good = cli("attach", trunk, "--from", DEMO, "--out", tmp_path / "good")
    assert (good.code, good.err) == (0, "")
    assert good.out.endswith("% of the head's drafts taken on a short text\n")

    attach = ("attach", trunk, "--from", damaged(DEMO, tmp_path / "damaged"))
    bad = cli(*attach, "--out", tmp_path / "bad")
    assert (bad.code, bad.out.count("\n"), bad.err.count("\n")) == (0, 1, 1)
    assert bad.err.startswith("mlxmtp: warning: the trunk takes only ")
    assert bad.err.endswith(f"; to undo, remove {tmp_path}/bad/mtp.safetensors\n")
    unchecked = cli(*attach, "--out", tmp_path / "unchecked", "--no-check")
    assert (unchecked.code, unchecked.err, unchecked.out.count("\n")) == (0, "", 1)


def test_it_refuses(cli, hub, raw, raw_checkpoint, trunk, tmp_path):
    hub.add(MODEL, raw)
    hub.add("maker/gated", raw, gated=True)
    other, wider = (
        tiny.raw_checkpoint(tmp_path / n, "qwen3_5", **o)
        for n, o in {"other": {"seed": 7}, "wider": {"hidden": 128}}.items()
    )
    drafter = tiny.drafter(wider, tmp_path / "drafter")
    before = contents(trunk)
    for original, says in {
        other: "the trunk was made from another model; name that one with --from",
        wider: f"{wider.name} has hidden_size 128, {trunk} 64: not the same model; name the one",
        drafter: "drafter has hidden_size 128",
        raw_checkpoint("qwen3_5_moe", dtype="float32"): "has model_type qwen3_5_moe",
        trunk: "has no MTP head (no mtp.* tensors); name the model that it was made from",
        "nothing": "nothing: no such folder; expected a model's folder or a Hub repo (owner/name)",
        "maker/nothing": "maker/nothing: no such folder, and no such repo on the Hub",
        "maker/gated": "maker/gated: gated; accept its terms on the Hub",
    }.items():
        assert_refused(cli("attach", trunk, "--from", original), says)
    assert_refused(cli("attach", trunk, "--from", MODEL, "--revision", "v9"), "no branch, tag or commit 'v9'")
    assert_refused(cli("attach", raw, "--from", raw), f"{raw} has a head already, among its own weights")
    assert_refused(cli("attach", drafter, "--from", raw), "a head without its model")
    assert contents(trunk) == before


def test_progress_is_shown(cli, hub, data, impatient, raw, trunk):
    hub.add(MODEL, raw)
    doing = f"Fetching the head of {MODEL}"
    first, *_, last = cli("attach", trunk, "--from", MODEL, "--no-check").err.splitlines()
    assert first == f"{doing} ..."
    assert last.startswith(f"{doing}: ")
    assert last.endswith(" kB (100%)")
