"""`mlxmtp doctor` reports every result in words, never with a traceback."""

import json

import mlx.core as mx
import pytest

import mlxmtp
from mlxmtp import load, machine
from mlxmtp.bench import precision
from mlxmtp.cli import doctor
from mlxmtp.errors import BackendError, NumericsError
from mlxmtp.exactness import probe
from mlxmtp.exactness.greedy import GreedyRun
from tests.exactness.stand_in import backend, narrow, own
from tests.grids import cases

TOKENS = 12
"""Tokens of the greedy run here."""


@pytest.fixture(scope="session")
def raw(raw_checkpoint):
    """A checkpoint of two layers, which are soon compared."""
    return raw_checkpoint("qwen3_5", layers=2, interval=2)


@pytest.fixture(autouse=True)
def short(data, monkeypatch):
    """A short context, a few lengths of passes, a short greedy run, and no guarantees saved by other tests."""
    monkeypatch.setattr(probe, "FULL", probe.ProbePlan((32,)))
    monkeypatch.setattr(probe, "LONG_LENGTHS", {32: (9, probe.MAX_TOKENS)})
    monkeypatch.setattr("mlxmtp.engine.examine.TOKENS", TOKENS)


def rows(ran):
    return {line[:11].strip(): line[11:] for line in ran.out.splitlines()}


def test_the_demo_on_this_backend(main_):
    ran = main_("doctor")
    found = rows(ran)
    assert ran.code == 0
    assert list(found) == ["machine", "memory", "MLX", "with", "model", "head", "float16", "fast", "promise", ""]
    assert (found["model"], found["head"]) == ("demo", "qwen-mtp")
    assert found["MLX"].startswith("cpu ")
    assert f"mlxmtp {mlxmtp.__version__}" in found["with"]
    assert "the same bits in passes of up to 8 rows" in found["fast"]
    assert found["fast"].endswith(f"{TOKENS} greedy tokens are the same with and without MTP")
    assert found["promise"] == "token-identical to plain decoding"


def test_a_backend_that_depends_on_rows(main_, raw):
    with backend():
        ran = main_("doctor", "--model", str(raw))
    found = rows(ran)
    assert ran.code == 0, "nothing is broken"
    assert found["fast"].startswith("same distribution as plain decoding; near-ties may differ; logits differ by up to")
    assert found["strict"].startswith("token-identical to plain decoding, by one-row arithmetic; the same bits")
    assert found["canonical"].startswith("token-identical to plain decoding at canonical width")
    assert found["promise"] == "same distribution as plain decoding; near-ties may differ", "of what nobody asked for"
    assert found[""].startswith("--identity strict gives plain decoding's tokens")


def test_a_backend_that_changes_at_five_rows(main_, raw):
    with backend(lambda rows: 1 if rows < 5 else 3):
        found = rows(main_("doctor", "--model", str(raw)))["fast"]
    assert "the same bits in passes of up to 4 rows after up to 32 tokens, for --depth up to 3; logits differ" in found
    assert "in passes of 5 rows after 32 tokens" in found


def test_an_m1s_kernels_are_named_on_an_m3_and_an_m4(monkeypatch):
    monkeypatch.setattr("mlxmtp.machine.on_metal", lambda: True)
    info = {"architecture": "applegpu_g15s"}
    monkeypatch.setattr(mx, "device_info", lambda *_: info)
    for architecture, name in (("g15s", "g13s"), ("g16d", "g13d"), ("g13g", ""), ("g17s", ""), ("of another form", "")):
        info["architecture"] = f"applegpu_{architecture}"
        assert machine.older_gpu_name() == (name and f"applegpu_{name}"), architecture
    info["architecture"] = "applegpu_g15s"
    monkeypatch.setenv("MLX_METAL_GPU_ARCH", "applegpu_g13s")
    assert machine.older_gpu_name() == "", "that is what was compared"


@pytest.mark.exhaustive
def test_a_backend_on_which_only_a_width_helps(main_, raw):
    with backend(narrow, norms=own):
        found = rows(main_("doctor", "--model", str(raw)))
    assert found["strict"].startswith("same distribution")
    assert found["promise"].startswith("same distribution")
    assert "--identity canonical" in found[""]


def test_json(main_, raw):
    ran = main_("doctor", "--model", str(raw), "--json")
    report = json.loads(ran.out)
    assert (ran.code, ran.out.count("\n{")) == (0, 0)
    assert set(report) == {"machine", "model", "float16_times", "identities", "promise", "best"}
    assert set(report["float16_times"]) == {"1", "256"}
    assert report["promise"] == report["identities"]["fast"]["verdict"]["promise"] == "identical"
    assert report["best"] == {"identity": "fast", "promise": "identical"}
    assert report["identities"]["fast"]["greedy_run"] == {"tokens": TOKENS, "gap": None}
    assert report["machine"]["memory_bytes"] > 0


def test_float16_is_advised_where_it_is_faster(main_, raw, monkeypatch):
    monkeypatch.setattr(precision, "float16_times", lambda *_: {1: 1.0, 256: 0.4})
    found = rows(main_("doctor", "--model", str(raw)))
    assert found["float16"] == (
        "takes 1.00 (of 1 row) and 0.40 (of 256 rows) of what bfloat16 takes; "
        f"faster here, if the model's values fit: mlxmtp convert {raw} OUT --dtype float16"
    )
    for times in ({1: 0.95, 256: 0.95}, {1: 1.2, 256: 0.4}):
        assert doctor.float16_finding(times, "name").endswith("; bfloat16 is right here"), times


def test_a_model_in_float16_needs_no_advice(main_, raw, tmp_path):
    assert main_("convert", str(raw), str(tmp_path / "half"), "--dtype", "float16").code == 0
    assert "float16" not in rows(main_("doctor", "--model", str(tmp_path / "half")))


def test_texts_that_part_without_a_reason(main_, raw, monkeypatch):
    monkeypatch.setattr("mlxmtp.engine.examine.greedy_run", lambda *_: GreedyRun(3, gap=4.0))
    ran = main_("doctor", "--model", str(raw))
    assert ran.code == 1
    assert "greedy texts part after 3 tokens, at a gap of 4 nats: not explained by rounding" in rows(ran)["fast"]
    assert "please report" in rows(ran)["broken"]
    ran = main_("doctor", "--model", str(raw), "--json")
    assert ran.code == 1
    assert "please report" in json.loads(ran.out)["error"]


@pytest.mark.parametrize("options", [(), ("--json",)])
@pytest.mark.parametrize("mtp", cases([True, False], default=(True,)))
def test_logits_that_are_not_finite_are_a_fault(main_, raw, monkeypatch, options, mtp):
    def loaded(*_, **__):
        engine = load(raw, mtp=mtp)
        weight = engine.target.model.layers[0].mlp.down_proj.weight
        engine.target.model.layers[0].mlp.down_proj.weight = mx.full(weight.shape, float("nan"))
        return engine

    monkeypatch.setattr(mlxmtp, "load", loaded)
    ran = main_("doctor", *options)
    assert ran.code == 1
    assert "not finite" in (json.loads(ran.out)["error"] if options else rows(ran)["broken"])


def test_no_such_model(main_):
    ran = main_("doctor", "--model", "./nowhere")
    assert ran.code == 2
    assert ran.err.startswith("mlxmtp: ./nowhere")
    assert "machine" in ran.out, "what was found is said"


@pytest.mark.parametrize("place", ["machine_facts", "load", "examine"])
def test_whatever_happens_is_told(main_, raw, monkeypatch, place):
    def fails(*_, **__):
        raise error

    owner = {"machine_facts": doctor, "load": mlxmtp, "examine": "mlxmtp.engine.examine.examine"}[place]
    monkeypatch.setattr(precision, "float16_times", lambda *_: {1: 1.0, 256: 1.0})
    engine = load(raw)
    monkeypatch.setitem(vars(mlxmtp), "load", lambda *_, **__: engine)
    if isinstance(owner, str):
        monkeypatch.setattr(owner, fails)
    else:
        monkeypatch.setitem(vars(owner), place, fails)
    for error in (
        RuntimeError("the device is lost"),
        ValueError(),
        MemoryError("all gone"),
        NumericsError("not finite"),
    ):
        ran = main_("doctor")
        assert ran.code == 1, repr(error)
        expected = str(error) if isinstance(error, NumericsError) else f"{type(error).__name__}: {error}"
        assert rows(ran)["broken"] == expected
        assert "Traceback" not in ran.out + ran.err
        assert json.loads(main_("doctor", "--json").out)["error"] == expected


def test_without_mlx(main_, monkeypatch):
    def missing():
        raise BackendError("MLX cannot be imported; install it")

    monkeypatch.setattr(mlxmtp, "import_backend", missing)
    monkeypatch.delitem(vars(mlxmtp), "load", raising=False)
    ran = main_("doctor")
    assert (ran.code, rows(ran)["broken"]) == (1, "MLX cannot be imported; install it")


def test_a_model_without_a_head(main_, stripped):
    ran = main_("doctor", "--model", str(stripped))
    found = rows(ran)
    assert ran.code == 0
    assert found["head"].startswith("none: ")
    assert "greedy" not in found["fast"]
    assert found[""] == "there is no head, so decoding is plain; mlxmtp attach brings one"
