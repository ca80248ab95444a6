"""`mlxmtp convert`: written files, uploads, and refusals."""

import shutil
from pathlib import Path

import pytest

from tests import tiny
from tests.cli.conftest import assert_refused
from tests.comparing import contents

MADE = "me/made"
P4, P8 = "4-bit affine, groups of 64", "8-bit affine, groups of 64"


@pytest.mark.parametrize(
    ("options", "trunk", "head"),
    [
        ("", None, None),
        ("-q", P4, P8),
        ("-q --bits 8 --group-size 32", "8-bit affine, groups of 32", P8),
        ("-q --mode mxfp4 --head-bits 4", "4-bit mxfp4, groups of 32", P4),
        ("-q --mode nvfp4 --head-bits 16", "4-bit nvfp4, groups of 16", None),
        ("-q --mode mxfp8", "8-bit mxfp8, groups of 32", P8),
        ("--head-bits 8 --dtype float16", None, P8),
    ],
)
def test_what_is_written(cli, report, raw, tmp_path, options, trunk, head):
    ran = cli("convert", raw, tmp_path / "new", *options.split())
    found = report(tmp_path / "new")
    assert (found["verdict"], found["format"], found["head"]["place"]) == ("speculates", "MLX", "side-car")
    assert (found["trunk"]["quantization"], found["head"]["weights"]["quantization"]) == (trunk, head)
    assert {part["dtype"] for part in (found["trunk"], found["head"]["weights"])} == {
        "F16" if "float16" in options else "BF16"
    }
    sizes = f"trunk {found['trunk']['nbytes'] / 1e3:.1f} kB, head {found['head']['weights']['nbytes'] / 1e3:.1f} kB"
    assert (ran.code, ran.err, ran.out) == (0, "", f"{tmp_path / 'new'}: {sizes}\n")


def test_it_says_what_is_missing(cli, stripped, tmp_path):
    bare = Path(shutil.copytree(stripped, tmp_path / "bare", ignore=shutil.ignore_patterns("*token*")))
    ran = cli("convert", bare, tmp_path / "new")
    assert (ran.code, ran.out) == (0, f"{tmp_path / 'new'}: trunk 158.3 kB, no head\n")
    head, tokenizer = ran.err.splitlines()
    assert head.startswith("mlxmtp: warning: no head was written: the files hold no MTP head")
    assert f"`mlxmtp attach {bare} --from ORIGINAL`" in head
    assert tokenizer.startswith(f"mlxmtp: warning: {bare}: no tokenizer; expected one of tokenizer.json")
    assert tokenizer.endswith(f"add it to {tmp_path / 'new'}")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--bits 4", "--bits, --group-size and --mode describe --quantize; add -q"),
        ("-q --bits 7", "7 bits in groups of 64; expected 2, 3, 4, 5, 6, 8 bits in groups of 32, 64 or 128"),
        ("-q --bits 7 --group-size 48", "7 bits in groups of 48; expected"),
        ("-q --mode mxfp4 --bits 8", "mxfp4 has 4 bits in groups of 32; leave both out"),
        ("--upload-repo foo", "foo: expected a Hub repo (owner/name) to upload to"),
        ("--upload-repo me/made", "me/made: cannot be uploaded to without a token; run `hf auth login`"),
    ],
)
def test_it_refuses_options(cli, hub, raw, tmp_path, options, says):
    assert_refused(cli("convert", raw, tmp_path / "new", *options.split()), says)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("options", ["--bits 0", "--bits x", "--group-size 6.5", "--mode int4", "--head-bits 5"])
def test_it_refuses_values(cli, raw, tmp_path, options):
    ran = cli("convert", raw, tmp_path / "new", "-q", *options.split())
    assert (ran.code, ran.out) == (2, "")
    message, hint = ran.err.splitlines()
    assert message.startswith(f"mlxmtp: argument {options.split()[0]}: ")
    assert hint == "Try 'mlxmtp convert --help'."


def test_it_refuses_places(cli, raw, stripped, tmp_path):
    before = contents(raw)
    assert_refused(cli("convert", raw, raw), "exists already; remove it, or choose another name")
    assert_refused(cli("convert", raw, raw / "new"), f"new is inside {raw}, which stays as it is")
    assert_refused(cli("convert", "nothing", tmp_path / "new"), "nothing: no such folder; expected a model's folder")
    assert_refused(cli("convert", stripped, tmp_path / "new", "-q"), "is quantised already; convert from its original")
    drafter = tiny.drafter(raw, tmp_path / "drafter")
    assert_refused(cli("convert", drafter, tmp_path / "new"), "a head without its model; `mlxmtp attach MODEL --from")
    assert contents(raw) == before
    assert not (tmp_path / "new").exists()


def test_progress_is_shown(cli, impatient, raw, tmp_path):
    doing = f"Writing {tmp_path / 'new'}"
    first, *_, last = cli("convert", raw, tmp_path / "new").err.splitlines()
    assert (first, last) == (f"{doing} ...", f"{doing}: 675.1 kB of 675.1 kB (100%)")


@pytest.mark.exhaustive
def test_an_uploaded_conversion_has_its_head(cli, report, answer, hub, data, monkeypatch, raw, tmp_path):
    monkeypatch.setenv("HF_TOKEN", hub.token)
    ran = cli("convert", raw, tmp_path / "new", "-q", "--upload-repo", MADE)
    assert (ran.code, ran.out.splitlines()[1:]) == (0, [f"uploaded to {hub.url}/{MADE}"])
    assert contents(hub.uploaded(MADE)) == contents(tmp_path / "new")
    local, remote = report(tmp_path / "new"), report(MADE)
    assert (remote["where"], remote["verdict"]) == ("hub", "speculates")
    assert remote["head"] == local["head"]
    assert remote["trunk"] == local["trunk"]
    tokens = answer(tmp_path / "new")["tokens"]
    there = answer(MADE)
    assert (there["head"], there["tokens"]) == ("qwen-mtp", tokens)


def test_a_refused_upload_keeps_the_conversion(cli, report, hub, monkeypatch, raw, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "hf_of_another")
    ran = cli("convert", raw, tmp_path / "new", "--upload-repo", MADE)
    assert ran.code == 2
    assert ran.err.splitlines()[-1].startswith("mlxmtp: me/made: the upload failed (Client error '401 Unauthorized'")
    assert ran.err.endswith(f"; {tmp_path}/new is complete, `hf upload me/made {tmp_path}/new` tries again\n")
    assert report(tmp_path / "new")["verdict"] == "speculates"
