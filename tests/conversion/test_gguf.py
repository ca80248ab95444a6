"""Heads from GGUF files, in llama.cpp's layout, are the heads of the checkpoints that the files were made from."""

import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from unittest import mock

import gguf
import mlx.core as mx
import numpy as np
import pytest

from mlxmtp import GenerationOptions, load
from mlxmtp.checkpoints import HeadFiles, gguf_header, gguf_values
from mlxmtp.checkpoints.gguf_files import open_local_gguf
from mlxmtp.checkpoints.remote import RemoteRepo
from mlxmtp.cli import main
from mlxmtp.conversion import sources
from mlxmtp.conversion.attach import attach
from mlxmtp.errors import CheckpointError, HeadError
from tests import tiny
from tests.conversion.faults import Run, assert_told
from tests.grids import cases
from tests.hub import Hub
from tests.tiny.gguf import ARCHITECTURES, Tensors, gguf_file, llama_cpp_tensors, rounded, write_gguf, write_packed

Checkpoints = Callable[..., Path]
SHOWN = [(model_type, ("F32", "Q8_0")) for model_type in ("qwen3_5", "qwen3_5_moe", "glm4_moe", "deepseek_v3")]
FURTHER = [(model_type, ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_1")) for model_type in ARCHITECTURES]


@pytest.fixture
def raw(request: pytest.FixtureRequest, tmp_path: Path) -> Checkpoints:
    """A raw float32 checkpoint of a model type, with or without its head."""

    def write(kind: str, head: bool = True) -> Path:
        if kind == "joyai_llm_flash":  # DeepSeek V3 by another name
            folder = Path(shutil.copytree(write("deepseek_v3", head), tmp_path / f"joyai {head}"))
            config = (folder / "config.json").read_text()
            (folder / "config.json").write_text(config.replace("deepseek_v3", kind))
            return folder
        kinds = {"several": tiny.SEVERAL_KINDS, "layer": tiny.LAYER_KINDS, "hybrid": tiny.HYBRID_KINDS}
        kinds |= {"nextn": tiny.NEXTN_KINDS, "raw": tiny.KINDS}
        name = next(name for name, own in kinds.items() if kind in own)
        options = {"raw": {"dtype": "float32"}, "nextn": {"own": "other"} if head else {}}.get(name, {})
        checkpoint = request.getfixturevalue(f"{name}_checkpoint")
        return checkpoint(kind, head=head, **options, **({} if name == "layer" else {"vocab": 24}))

    return write


def values_of(file: Path) -> Tensors:
    return {name: np.array(value) for name, value in mx.load(str(file)).items()}


@pytest.mark.parametrize(("model_type", "kinds"), cases(SHOWN + FURTHER, default=SHOWN))
def test_a_head_is_that_of_the_safetensors_dequantised(
    raw: Checkpoints,
    tmp_path: Path,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    model_type: str,
    kinds: tuple[str, ...],
) -> None:
    monkeypatch.setattr(gguf_values, "ROW_BYTES", 4000)  # several blocks a matrix
    source, trunk = raw(model_type), raw(model_type, head=False)
    right = attach(trunk, str(source), out=tmp_path / "right")
    arrays = values_of(right.file)
    for kind in kinds:
        # the old layout has kv_b whole, of which the parts would be rounded otherwise
        file = gguf_file(source, tmp_path / f"{kind}.gguf", kind=kind, trunk=kind != "F16", legacy=kind == "F32")
        done = attach(trunk, str(file), out=tmp_path / kind)
        found = values_of(done.file)
        assert found.keys() == arrays.keys(), kind
        for name, values in arrays.items():
            assert np.array_equal(found[name], rounded(values, kind)), (kind, name)
        assert not list((data / "partial").iterdir()), kind
    mx.save_safetensors(str(right.file), {name: mx.array(rounded(values, kind)) for name, values in arrays.items()})
    options = GenerationOptions(max_tokens=16, depth=2)
    runs = [load(model).generate([5, 9, 3], options) for model in (right.model, done.model)]
    assert runs[0].tokens == runs[1].tokens
    assert runs[0].stats.accepted_by_depth == runs[1].stats.accepted_by_depth, "the same drafts"
    assert runs[0].stats.drafted, "the head is not at work"


def test_every_type_has_the_values_of_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random bytes, as 2 experts of 3 rows and as one matrix; some give numbers that are not finite."""
    monkeypatch.setattr(gguf_values, "ROW_BYTES", 1)
    rng, packed = np.random.default_rng(0), {}
    for dtype, (block, nbytes) in gguf.GGML_QUANT_SIZES.items():
        content = rng.integers(0, 256, (2, 3, 512 // block * nbytes), np.uint8)
        packed |= {f"blk.1.nextn.{dtype.name}": (content, dtype), f"blk.1.nextn.{dtype.name}2": (content[0], dtype)}
    model = open_local_gguf(write_packed(tmp_path / "all.gguf", "qwen35", {}, packed))
    assert model is not None
    names = {name: name.removeprefix("blk.1.nextn.") for name in model.head}

    def refusal(name: str) -> str:
        head = HeadFiles({name: model.head[name]}, {name: names[name]}, "shards", {})
        with suppress(HeadError):
            return gguf_values.check_values(head, "FILE") or ""
        return model.head[name].dtype

    refused = {refusal(name) for name in model.head}
    assert {"Q8_1", "Q8_K", "I8", "F64"} <= refused
    known = {name: info for name, info in model.head.items() if info.dtype not in refused}
    wanted = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
    assert not set(wanted) & refused
    head = HeadFiles(known, {name: names[name] for name in known}, "shards", {})

    def read(info, start, stop):
        return model.files.read(str(info.file), info.start + start, info.start + stop)

    written = gguf_values.write_values(head, read, tmp_path / "all.safetensors")
    found = {name: value.astype(mx.float32) for name, value in mx.load(str(tmp_path / "all.safetensors")).items()}
    assert gguf_values.written_bytes(head) == written.nbytes
    assert len(found) == len(known)
    for name, (content, dtype) in packed.items():
        if name in known:
            with np.errstate(all="ignore"):
                right = gguf.quants.dequantize(content, dtype)
            assert np.array_equal(np.array(found[names[name]]), right, equal_nan=True), name


def test_other_layouts_of_the_same_values(raw: Checkpoints, tmp_path: Path, data: Path) -> None:
    """Gates and up-projections of the experts in one tensor; kv_b whole beside its parts; another name of a norm."""
    for model_type in ("qwen3_5_moe", "deepseek_v3"):
        source, trunk = raw(model_type), raw(model_type, head=False)
        right = values_of(attach(trunk, str(source), out=tmp_path / f"{model_type} right").file)
        stored = llama_cpp_tensors(source)
        gate = max(name for name in stored if name.endswith("ffn_gate_exps.weight"))
        up = gate.replace("gate", "up")
        changed = {gate: None, up: None, gate.replace("gate", "gate_up"): np.concatenate([stored[gate], stored[up]], 1)}
        norm = f"{gate[:6]}post_attention_norm.weight"
        if norm in stored:
            changed |= {norm: None, norm.replace("post_attention", "ffn"): stored[norm]}
        else:
            changed |= {name: stored[name].copy() for name in stored if name.startswith(gate[:6]) and "_b." in name}
        file = gguf_file(source, tmp_path / f"{model_type}.gguf", legacy=True, tensors=changed)
        found = values_of(attach(trunk, str(file), out=tmp_path / model_type).file)
        assert found.keys() == right.keys(), model_type
        assert all(np.array_equal(found[name], right[name]) for name in right), model_type


@pytest.fixture
def repo(hub: Hub, data: Path, raw: Checkpoints, tmp_path: Path) -> Path:
    """A repo of GGUF files alone, as maker/gguf; the best is split, in a folder."""
    folder = tmp_path / "repo"
    (folder / "BF16").mkdir(parents=True)
    for kind in ("Q4_0", "Q8_0"):
        gguf_file(raw("qwen3_5"), folder / f"tiny-{kind}.gguf", kind=kind)
    gguf_file(raw("qwen3_5"), folder / "BF16" / "tiny-BF16.gguf", kind="BF16", parts=3)
    (folder / "mmproj-F32.gguf").write_bytes(b"a vision tower")
    (folder / "README.md").write_text("text")
    hub.add("maker/gguf", folder)
    return folder


def test_a_repo_of_gguf_files(
    hub: Hub, repo: Path, raw: Checkpoints, tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_header, "HEADER_BLOCK", 1000)
    trunk, best = raw("qwen3_5", head=False), "BF16/tiny-BF16-00001-of-00003.gguf"
    arrays = values_of(attach(trunk, str(raw("qwen3_5")), out=tmp_path / "right").file)

    def check(original: str, kind: str, out: str) -> None:
        found = values_of(attach(trunk, original, out=tmp_path / out).file)
        assert all(np.array_equal(found[name], rounded(values, kind)) for name, values in arrays.items()), original

    check("maker/gguf", "BF16", "best")
    model = open_local_gguf(repo / best)
    assert model is not None
    starts = {info.file: 1 << 60 for info in model.header.tensors.values()}
    for info in model.header.tensors.values():
        starts[info.file] = min(info.start, starts[info.file])
    assert len(starts) == 3
    norms = ("output_norm.weight", "blk.0.attn_norm.weight")
    needed = [info for name, info in model.header.tensors.items() if name in model.head or name in norms]
    bound = sum(starts.values()) + 3 * 1000 + sum(info.nbytes for info in needed)
    sent = sum(r.sent_bytes for r in hub.requests if "/cdn/" in r.path)
    assert bound - 3 * 1000 <= sent <= bound, "headers, the head, and two norms"
    assert not any("Q8_0" in request.path or "mmproj" in request.path for request in hub.requests)
    assert not list((data / "partial").iterdir())
    check("maker/gguf/tiny-Q4_0.gguf", "Q4_0", "named")
    check(f"maker/gguf/{best}", "BF16", "split")
    check(str(repo), "BF16", "folder")
    check(str(repo / "tiny-Q8_0.gguf"), "Q8_0", "file")
    check(str(repo / "BF16" / "tiny-BF16-00002-of-00003.gguf"), "BF16", "a part")


def test_a_stopped_download_goes_on(
    hub: Hub, repo: Path, raw: Checkpoints, tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the head of another file with the same layout, of which nothing is mixed in."""
    trunk, block = raw("qwen3_5", head=False), 8000
    other = gguf_file(
        tiny.raw_checkpoint(tmp_path / "other", "qwen3_5", vocab=24, seed=7), repo / "Z-Q8_0.gguf", kind="Q8_0"
    )
    assert other.stat().st_size == (repo / "tiny-Q8_0.gguf").stat().st_size
    monkeypatch.setattr(sources, "BLOCK", block)
    read, blocks = RemoteRepo.read, []

    def stopped(self: RemoteRepo, file: str, start: int, stop: int) -> bytes:
        blocks.append((file, start)) if stop - start == block else None
        if len(blocks) == 3:
            raise CheckpointError("stopped")
        return read(self, file, start, stop)

    monkeypatch.setattr("mlxmtp.conversion.attach.check_sample", lambda *_: None)  # the other file's trunk is another
    for file in (other.name, "tiny-Q8_0.gguf"):
        blocks.clear()
        with mock.patch.object(RemoteRepo, "read", stopped), pytest.raises(CheckpointError, match="stopped"):
            attach(trunk, f"maker/gguf/{file}", out=tmp_path / "out")
    assert len(list((data / "partial").iterdir())) == 2
    monkeypatch.setattr(RemoteRepo, "read", lambda *some: blocks.append(some[1:]) or read(*some))
    blocks.clear()
    done = attach(trunk, "maker/gguf/tiny-Q8_0.gguf", out=tmp_path / "out")
    right = attach(trunk, str(repo / "tiny-Q8_0.gguf"), out=tmp_path / "right")
    assert done.file.read_bytes() == right.file.read_bytes()
    model = open_local_gguf(repo / "tiny-Q8_0.gguf")
    assert model is not None
    fetched = sum(stop - start for file, start, stop in blocks if start >= min(t.start for t in model.head.values()))
    assert fetched <= sum(info.nbytes for info in model.head.values()) - 2 * block + 3000
    (left,) = (data / "partial").iterdir()
    assert left.name.startswith(f"maker--gguf--{other.name}-"), "that of the other file"


def test_repos_that_leave_a_choice(hub: Hub, repo: Path, raw: Checkpoints, run: Run, tmp_path: Path) -> None:
    trunk = raw("qwen3_5", head=False)

    def refused(original: str, says: str) -> None:
        assert_told(run("attach", trunk, "--from", original, "--out", tmp_path / "out", "--no-check"), says)

    shutil.copy(repo / "tiny-Q8_0.gguf", repo / "other-Q8_0.gguf")
    shutil.rmtree(repo / "BF16")
    found = r"maker/gguf: 2 GGUF files with heads of the same quantisation \(other-Q8_0.gguf, tiny-Q8_0.gguf\); "
    refused("maker/gguf", found + r"name the one to take, such as maker/gguf/other-Q8_0.gguf")
    refused("maker/gguf/none.gguf", r"none.gguf: no such file; there are other-Q8_0.gguf, tiny-Q4_0.gguf, tiny-Q8_0")
    refused("maker/none/x.gguf", "maker/none: no such folder, and no such repo on the Hub")
    (repo / "other-Q8_0.gguf").unlink()
    both = Path(shutil.copytree(trunk, tmp_path / "both"))
    shutil.copy(repo / "tiny-Q8_0.gguf", both)
    hub.add("maker/both", both)
    for original in ("maker/both", str(both)):
        says = f"{original} has no MTP head .* name the model that it was made from, or one of its GGUF files, such as "
        refused(original, says + f"{original}/tiny-Q8_0.gguf")
    headless = {name: None for name in llama_cpp_tensors(raw("qwen3_5")) if name.startswith("blk.4.")}
    gguf_file(raw("qwen3_5"), repo / "tiny-F16.gguf", tensors=headless)
    done = attach(trunk, "maker/gguf", out=tmp_path / "done")
    assert '"source": "maker/gguf/tiny-Q8_0.gguf"' in (done.model / "config.json").read_text()
    shutil.copy(repo / "tiny-Q4_0.gguf", repo / "unlabelled.gguf")
    done = attach(trunk, "maker/gguf", out=tmp_path / "again")
    assert '"source": "maker/gguf/tiny-Q8_0.gguf"' in (done.model / "config.json").read_text()
    for file in (*repo.glob("tiny-Q*"), repo / "unlabelled.gguf"):
        file.unlink()
    refused(
        "maker/gguf", r"tiny-F16.gguf has no MTP head \(no nextn tensors\); its metadata declare one, which may be in"
    )
    for i in range(8):
        shutil.copy(repo / "tiny-F16.gguf", repo / f"tiny-{i}-F16.gguf")
    refused("maker/gguf", "9 GGUF files, and the headers of 8 do not decide; name the one to take, such as maker/")


def test_heads_that_are_not_taken(raw: Checkpoints, tmp_path: Path, run: Run) -> None:
    source, trunk = raw("qwen3_5"), raw("qwen3_5", head=False)
    stored = llama_cpp_tensors(source)
    up = "blk.4.ffn_up.weight"
    odd = np.ones((3, 64), np.float32)

    def refused(says: str, of: Path = trunk, **options: object) -> None:
        file = gguf_file(source, tmp_path / "head.gguf", **options)
        assert_told(run("attach", of, "--from", file, "--out", tmp_path / "out", "--no-check"), says)

    refused("head.gguf: the head has blk.4.attn_qkv.weight, which no qwen", tensors={"blk.4.attn_qkv.weight": odd})
    refused("the head has blk.4.ffn_up.scale, which no qwen35 head", tensors={"blk.4.ffn_up.scale": odd[0]})
    refused("head's mlp.up_proj.weight|up_proj.weight is missing", tensors={up: None})
    refused(r"up_proj.weight is \(3, 64\), expected", tensors={up: odd})
    refused("model_type qwen3_5, .* glm4_moe: not the same model", of=raw("glm4_moe", head=False))
    refused("has hidden_size 65, .* 64: not the same model", **{"qwen35.embedding_length": 65})
    other = stored["output_norm.weight"] + 1
    refused("model.norm.weight of .* the trunk was made from another", tensors={"output_norm.weight": other})
    renamed = {name: None for name in stored if name.startswith("blk.4.nextn.")}
    refused(r"has no MTP head \(no nextn tensors\)", tensors=renamed, **{"qwen35.nextn_predict_layers": 0})
    refused("unknown tensor layers.1.input_layernorm.weight", tensors={"blk.5.attn_norm.weight": odd[0]})
    refused("unknown tensor layers.0.self_attn.q_proj.bias", tensors={"blk.4.attn_q.bias": odd[0]})
    file = gguf_file(raw("deepseek_v3"), tmp_path / "x.gguf", tensors={"blk.3.post_attention_norm.weight": odd[0]})
    says = "blk.3.post_attention_norm.weight, which no deepseek2 head"
    assert_told(run("attach", raw("deepseek_v3", head=False), "--from", file, "--no-check"), says)
    source, both = raw("qwen3_5_moe"), {"blk.4.ffn_gate_up_exps.weight": np.ones((4, 128, 64), np.float32)}
    refused("two of its tensors are the head's layers.0.mlp.switch_mlp.gate_proj.weight", tensors=both)
    odd_gates = {"blk.4.ffn_gate_up_exps.weight": np.ones((4, 127, 64), np.float32)}
    refused(r"gate_up_exps.weight is \(4, 127, 64\), expected gates and as many up-projections", tensors=odd_gates)
    content = (tmp_path / "x.gguf").read_bytes().replace(b"deepseek2", b"mamba-abc")
    (tmp_path / "mamba.gguf").write_bytes(content)
    says = "heads of the GGUF architecture 'mamba-abc' are not read; expected bailingmoe2, "
    assert_told(run("attach", trunk, "--from", tmp_path / "mamba.gguf", "--no-check"), says)


def test_families_whose_heads_no_file_holds(raw: Checkpoints, tmp_path: Path, run: Run) -> None:
    trunk = raw("qwen3_5", head=False)
    told = {
        "mellum": r"x.gguf has no MTP head \(no nextn tensors\); name a file, or the original model, that has one",
        "gemma4-assistant": "x.gguf is a Gemma 4 assistant, .* expected the original assistant, such as google/",
    }
    for architecture, says in told.items():
        file = write_gguf(tmp_path / "x.gguf", architecture, {}, {"blk.0.attn_norm.weight": np.ones(64, np.float32)})
        assert_told(run("attach", trunk, "--from", file, "--no-check"), says)
        assert main(["inspect", str(file)]) == 0


def test_inspect_describes_a_gguf_file(
    repo: Path, raw: Checkpoints, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def shown(name: object) -> dict[str, str]:
        assert main(["inspect", str(name)]) == 0
        return {line[:8].strip(): line[8:] for line in capsys.readouterr().out.splitlines()}

    found = shown("maker/gguf")
    name = "maker/gguf/BF16/tiny-BF16-00001-of-00003.gguf"
    assert found["model"] == f"{name}, on the Hub, not downloaded"
    assert found["type"] == "qwen35, GGUF layout"
    assert found["size"] == "4 layers, hidden 64, vocabulary 24"
    assert found["head"].startswith("qwen-mtp, 1 layer, block 4; ")
    assert "BF16" in found["head"]
    attaches = f"takes its head: `mlxmtp attach MODEL --from {name}` takes it for an MLX model of this trunk"
    assert found["mlxmtp"] == attaches + "; of 3 GGUF files it has the least quantised head"
    found = shown(repo / "tiny-Q4_0.gguf")
    assert "; Q4_0; the rest F32; " in found["head"]
    file = gguf_file(raw("glm4_moe"), tmp_path / "glm.gguf", kind="Q8_0", trunk=False)
    found = shown(file)
    assert found["head"].startswith("nextn, 1 layer, block 3; ")
    assert found["head"].endswith("Q8_0; the rest F32; norms plain")
    assert found["trunk"].endswith("Q8_0; the rest F32")
    assert "experts" not in found["size"]
    for content in (b"qwen35", b"mamba2"):
        (tmp_path / "m.gguf").write_bytes((repo / "tiny-Q4_0.gguf").read_bytes().replace(b"qwen35", content))
    found = shown(tmp_path / "m.gguf")
    assert found["head"].startswith("of an unknown kind, 1 layer, block 4; ")
    assert found["mlxmtp"].startswith("refuses it: ")
    headless = {name: None for name in llama_cpp_tensors(raw("qwen3_5")) if name.startswith("blk.4.")}
    found = shown(gguf_file(raw("qwen3_5"), tmp_path / "none.gguf", tensors=headless))
    assert found["head"] == "none"
    assert "has no MTP head (no nextn tensors)" in found["mlxmtp"]


def test_a_part_that_is_missing_or_misnamed(raw: Checkpoints, tmp_path: Path) -> None:
    first = gguf_file(raw("qwen3_5"), tmp_path / "x.gguf", parts=3)
    second = tmp_path / "x-00002-of-00003.gguf"
    for change, says in {
        lambda: shutil.copy(first, second): "part 1 of 3 by its metadata, expected 2 of 3 by its name",
        second.unlink: "x-00001-of-00003.gguf: missing x-00002-of-00003.gguf; download all parts",
        lambda: first.rename(tmp_path / "whole.gguf"): "whole.gguf: part 1 of 3 by its metadata, expected 1 of 1 by",
        lambda: (tmp_path / "whole.gguf").rename(tmp_path / "x-00001-of-99999.gguf"): "99999 parts by its name",
    }.items():
        change()
        file = next(iter([*tmp_path.glob("whole.gguf"), *tmp_path.glob("x-00001-*")]))
        with pytest.raises(CheckpointError, match=says):
            open_local_gguf(file)
