"""The head against transformers' torch implementation, and against itself however it is stored.

The golden files are made by scripts/make_goldens.py, whose docstring says what they hold.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from mlxmtp.checkpoints import open_checkpoint
from mlxmtp.checkpoints.checkpoint import DEMO
from mlxmtp.heads import NoHeadError, load_head
from mlxmtp.targets import load_target
from tests import tiny
from tests.grids import cases, grid

GOLDENS = Path(__file__).resolve().parent.parent / "goldens"
LAYER_KINDS = ("mimo", "exaone_moe", "mellum", "ernie4_5_moe", "nemotron_h", "bailing_moe_v3", "kimi_linear")
GOLDEN_KINDS = ("qwen3_5", "qwen3_5_moe", "qwen3_next", *tiny.NEXTN_KINDS, "glm_moe_dsa_shared", *LAYER_KINDS)
DEPTHS = (1, 2, 3)
HEAD_TOLERANCE = 1e-5
# The trunk sums its recurrence row by row, transformers in chunks of 64: float32 rounding, logits up to 11.
TRUNK_TOLERANCE = 5e-5

Checkpoints = Callable[..., Path]


@dataclass(frozen=True)
class Golden:
    """A golden folder, loaded: its target, head and expected arrays."""

    folder: Path
    target: Any
    head: Any
    expected: dict[str, mx.array]


@pytest.fixture(scope="module", params=GOLDEN_KINDS)
def golden(request: pytest.FixtureRequest) -> Golden:
    folder = GOLDENS / request.param
    target = load_target(open_checkpoint(folder))
    return Golden(
        folder, target, load_head(open_checkpoint(folder), target), mx.load(str(folder / "expected.safetensors"))
    )


def difference(ours: mx.array, expected: mx.array) -> float:
    assert ours.shape == expected.shape
    return float(mx.abs(ours - expected).max())


def depths(head: Any, hidden: mx.array, expected: dict[str, mx.array]) -> Iterator[tuple[int, mx.array]]:
    """The head's output at depths 1 to 3: every true row at once, then the recursion from the last one."""
    cache = head.make_cache([])
    rows = hidden[:, :-1]
    for depth in DEPTHS:
        out = head(rows, expected[f"next_tokens_d{depth}"], cache)
        yield depth, out
        rows = out[:, -1:]


# -- against transformers


def test_trunk_equals_transformers(golden: Golden) -> None:
    logits, hidden = golden.target.forward(golden.expected["tokens"], golden.target.make_cache())
    assert difference(hidden, golden.expected["trunk_hidden"]) < TRUNK_TOLERANCE
    assert difference(logits, golden.expected["trunk_logits"]) < TRUNK_TOLERANCE


def test_head_equals_transformers_at_depths_1_to_3(golden: Golden) -> None:
    for depth, out in depths(golden.head, golden.expected["trunk_hidden"], golden.expected):
        assert difference(out, golden.expected[f"head_hidden_d{depth}"]) < HEAD_TOLERANCE, depth
        logits = golden.head.logits(out)
        assert difference(logits, golden.expected[f"head_logits_d{depth}"]) < HEAD_TOLERANCE, depth


def test_trunk_and_head_together_equal_transformers(golden: Golden) -> None:
    _, hidden = golden.target.forward(golden.expected["tokens"], golden.target.make_cache())
    for depth, out in depths(golden.head, hidden, golden.expected):
        assert difference(out, golden.expected[f"head_hidden_d{depth}"]) < TRUNK_TOLERANCE, depth
        logits = golden.head.logits(out)
        assert difference(logits, golden.expected[f"head_logits_d{depth}"]) < TRUNK_TOLERANCE, depth


def test_true_rows_fed_in_pieces_equal_transformers(golden: Golden) -> None:
    """Prefill feeds rows in chunks, rounds feed a few at a time: the rows must not depend on it."""
    hidden, following = golden.expected["trunk_hidden"], golden.expected["next_tokens_d1"]
    cache = golden.head.make_cache([])
    edges = (0, 1, 2, 7, 16, following.shape[1])
    pieces = [golden.head(hidden[:, start:stop], following[:, start:stop], cache) for start, stop in pairwise(edges)]
    assert difference(mx.concatenate(pieces, axis=1), golden.expected["head_hidden_d1"]) < HEAD_TOLERANCE


def test_a_wrong_formula_would_be_seen(golden: Golden) -> None:
    """The goldens discriminate: hidden states one row late are far off, and no norm is near 1 everywhere."""
    expected = golden.expected["head_hidden_d1"]
    hidden, following = golden.expected["trunk_hidden"], golden.expected["next_tokens_d1"]
    shifted = mx.concatenate([hidden[:, :1], hidden[:, :-2]], axis=1)
    assert difference(golden.head(shifted, following, golden.head.make_cache([])), expected) > 0.1
    norms = [value for name, value in tree_flatten(golden.head.parameters()) if value.ndim == 1]
    assert norms
    assert all(float(mx.abs(weight - 1).max()) > 0.1 for weight in norms)


@pytest.mark.parametrize(
    ("kind", "setting"),
    [
        ("deepseek_v32", {"index_topk": 64}),
        ("deepseek_v32", {"indexer_rope_interleave": True}),
        ("glm_moe_dsa", {"index_topk": 64}),
        ("glm_moe_dsa", {"indexer_rope_interleave": False}),
    ],
    ids=str,
)
def test_other_keys_would_be_seen(tmp_path: Path, kind: str, setting: dict[str, Any]) -> None:
    """The goldens discriminate: sparse attention to every key, or to those that the other layout of the rope picks."""
    folder = shutil.copytree(GOLDENS / kind, tmp_path / kind)
    config = json.loads((folder / "config.json").read_text())
    tiny.write_json(folder / "config.json", config | setting)
    target, expected = load_target(open_checkpoint(folder)), mx.load(str(folder / "expected.safetensors"))
    _, hidden = target.forward(expected["tokens"], target.make_cache())
    assert difference(hidden, expected["trunk_hidden"]) > 0.1
    for depth, out in depths(load_head(open_checkpoint(folder), target), expected["trunk_hidden"], expected):
        assert difference(out, expected[f"head_hidden_d{depth}"]) > 0.1, depth


def test_the_keys_of_another_layers_indexer_would_be_seen(tmp_path: Path) -> None:
    """The golden discriminates: layers 2 and 3 share the indexer of layer 1, not of layer 0, whose keys are others.

    Some conversions have an indexer in every layer, of which those of layers that share one are not read.
    """
    folder = shutil.copytree(GOLDENS / "glm_moe_dsa_shared", tmp_path / "model")
    expected = mx.load(str(folder / "expected.safetensors"))
    weights = tiny.load_weights(folder)
    indexer = {name: w for name, w in weights.items() if ".layers.1.self_attn.indexer." in name}
    weights |= {name.replace(".1.", ".3."): mx.zeros_like(w) for name, w in indexer.items()}
    tiny.save_weights(folder, weights, made_by="pt")
    config = json.loads((folder / "config.json").read_text())
    for types, least, most in (("FFSS", 0.0, TRUNK_TOLERANCE), ("FSSS", 0.1, 100.0), ("FFSF", 0.1, 100.0)):
        stated = [{"F": "full", "S": "shared"}[letter] for letter in types]
        tiny.write_json(folder / "config.json", config | {"indexer_types": stated})
        target = load_target(open_checkpoint(folder))
        _, hidden = target.forward(expected["tokens"], target.make_cache())
        assert least <= difference(hidden, expected["trunk_hidden"]) < most, types


# -- however it is stored

STORAGE: list[tuple[Literal["shards", "sidecar"], Literal["shifted", "raw"]]] = [
    ("shards", "shifted"),
    ("sidecar", "shifted"),
    ("shards", "raw"),
    ("sidecar", "raw"),
]


def parameters(folder: Path) -> dict[str, mx.array]:
    """The head's own parameters as loaded, by path."""
    return dict(tree_flatten(load_head(open_checkpoint(folder), load_target(open_checkpoint(folder))).parameters()))


def outputs(folder: Path) -> list[mx.array]:
    """Hidden states and logits of four rows and two recycled ones, on a hidden state that needs no trunk."""
    target = load_target(open_checkpoint(folder))
    head = load_head(open_checkpoint(folder), target)
    cache = head.make_cache([])
    width = parameters(folder)["norm.weight"].size
    rows = mx.random.normal((1, 4, width), key=mx.random.key(7)).astype(target.embed(mx.array([[3]])).dtype)
    found = []
    for tokens in ([[5, 9, 40, 7]], [[11]], [[13]]):
        out = head(rows, mx.array(tokens), cache)
        found += [out, head.logits(out)]
        rows = out[:, -1:]
    return found


def assert_same_head(one: Path, other: Path, *, run: bool = True) -> None:
    """Equal to the last bit: names, dtypes, values and, where this machine can run it, outputs."""
    first, second = parameters(one), parameters(other)
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert value.dtype == second[name].dtype, name
        assert mx.array_equal(value, second[name]), name
    if run:
        for a, b in zip(outputs(one), outputs(other), strict=True):
            assert mx.array_equal(a, b)


@pytest.mark.parametrize(
    ("kind", "dtype", "stored"),
    grid(
        tiny.KINDS,
        ["float32", "bfloat16"],
        STORAGE,
        default=lambda kind, dtype, stored: kind == "qwen3_5" or (dtype, stored) == ("float32", STORAGE[1]),
    ),
    ids=str,
)
def test_a_conversion_holds_the_same_head_as_the_raw_checkpoint(
    raw_checkpoint: Checkpoints,
    mlx_conversion: Checkpoints,
    kind: tiny.Kind,
    dtype: str,
    stored: tuple[str, str],
) -> None:
    head, norms = stored
    raw = raw_checkpoint(kind, dtype=dtype)
    converted = mlx_conversion(raw, head=head, head_norms=norms)
    # gather_mm knows float32 and quantised experts only on the CPU backend
    assert_same_head(raw, converted, run=dtype == "float32" or not tiny.is_moe(kind))


@pytest.mark.parametrize("kind", ["qwen3_5", "qwen3_5_moe", "qwen3_next"])
def test_the_norms_offset_is_added_once(
    raw_checkpoint: Checkpoints, mlx_conversion: Checkpoints, kind: tiny.Kind
) -> None:
    raw = raw_checkpoint(kind, dtype="float32")
    stored = {k.removeprefix("mtp."): v for k, v in tiny.load_weights(raw).items() if k.startswith("mtp.")}
    folders = [raw] + [mlx_conversion(raw, head=head, head_norms=norms) for head, norms in STORAGE]
    for folder in folders:
        loaded = parameters(folder)
        vectors = [name for name, value in loaded.items() if value.ndim == 1]
        assert len(vectors) == 7
        for name in vectors:
            assert mx.array_equal(loaded[name], stored[name] + 1), (folder, name)


@pytest.mark.parametrize(
    ("kind", "trunks"),
    [
        ("qwen3_5_moe", ("fused", "per_expert")),
        ("qwen3_5_moe_text", ("fused", "per_expert")),
        ("qwen3_next", ("per_expert",)),  # nobody publishes its trunk fused
    ],
)
def test_experts_fused_and_per_expert_are_the_same_model(
    raw_checkpoint: Checkpoints, kind: tiny.Kind, trunks: tuple[tiny.Experts, ...]
) -> None:
    stored = [
        raw_checkpoint(kind, dtype="float32", experts=trunk, head_experts=head)
        for trunk in trunks
        for head in ("fused", "per_expert")
    ]
    tokens = mx.array([[5, 9, 40, 7]])
    targets = [load_target(open_checkpoint(folder)) for folder in stored]
    logits = [target.forward(tokens, target.make_cache())[0] for target in targets]
    for folder, rows in zip(stored[1:], logits[1:], strict=True):
        assert mx.array_equal(rows, logits[0])
        assert_same_head(stored[0], folder)


@pytest.mark.parametrize(
    ("kind", "bits"),
    grid(
        ["qwen3_5", "qwen3_5_moe", "qwen3_next"],
        [4, 8],
        default=lambda kind, bits: (kind, bits) in (("qwen3_5", 4), ("qwen3_5_moe", 8)),
    ),
)
def test_a_quantised_head_is_the_same_in_shards_and_side_car(
    raw_checkpoint: Checkpoints, mlx_conversion: Checkpoints, kind: tiny.Kind, bits: int
) -> None:
    raw = raw_checkpoint(kind)
    shards = mlx_conversion(raw, bits=bits, head="shards", head_bits=bits)
    assert_same_head(shards, mlx_conversion(raw, bits=bits, head="sidecar", head_bits=bits))
    assert_same_head(shards, mlx_conversion(raw, bits=bits, head="sidecar", head_bits=bits, head_norms="raw"))


@pytest.mark.parametrize("kind", ["qwen3_5", "qwen3_5_moe", "qwen3_next"])
@pytest.mark.parametrize(("bits", "tolerance"), [(4, 0.5), (8, 0.05)])
def test_a_quantised_head_is_near_the_unquantised_one(
    raw_checkpoint: Checkpoints, mlx_conversion: Checkpoints, kind: tiny.Kind, bits: int, tolerance: float
) -> None:
    """Wrong bits or group size would give noise; rounding moves normed states (around 1) by little."""
    raw = raw_checkpoint(kind, dtype="float32")
    exact = outputs(mlx_conversion(raw, head="sidecar"))[0]
    rounded = outputs(mlx_conversion(raw, head="sidecar", head_bits=bits))[0]
    assert float(mx.sqrt(mx.mean((exact - rounded) ** 2))) < tolerance


@pytest.mark.parametrize("shards", cases([1, 3], default=[3]))
def test_a_head_spread_over_shards_is_whole(
    raw_checkpoint: Checkpoints, mlx_conversion: Checkpoints, shards: int
) -> None:
    one = raw_checkpoint("qwen3_5")
    many = raw_checkpoint("qwen3_5", shards=shards)
    assert_same_head(one, many)
    assert_same_head(one, mlx_conversion(many, head="shards", shards=shards))


def test_no_head_is_said(raw_checkpoint: Checkpoints, mlx_conversion: Checkpoints) -> None:
    converted = mlx_conversion(raw_checkpoint("qwen3_5"), head="none")
    for folder in (raw_checkpoint("qwen3_5", head=False), converted):
        with pytest.raises(NoHeadError, match="the config declares one"):
            load_head(open_checkpoint(folder), load_target(open_checkpoint(folder)))


def test_a_trained_head_loads_with_its_offset() -> None:
    raw = mx.load(str(DEMO / "model.safetensors"))["mtp.norm.weight"]
    assert mx.array_equal(parameters(DEMO)["norm.weight"], raw + 1)
