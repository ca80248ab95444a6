"""Gemma 4's assistants against transformers, and which of them are refused.

The golden files are made by scripts/goldens_gemma.py, whose docstring says what they hold.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from mlxmtp import GenerationOptions, load
from mlxmtp.checkpoints import open_checkpoint
from mlxmtp.errors import HeadError
from mlxmtp.heads import load_head, resolve_head, self_check
from mlxmtp.heads.gemma import DraftPosition
from mlxmtp.targets import SharedKVCache, load_target
from tests import tiny
from tests.comparing import assert_equal
from tests.grids import cases
from tests.running import generated, reference

GOLDENS = Path(__file__).resolve().parent.parent / "goldens"
SHORT, LONG = 12, 40  # the window is 16
# Float32 rounding: hidden states are as large as 20, the final norm's weights being around 6.
STATES, LOGITS = 1e-4, 3e-5
DEPTHS = 3

Checkpoints = Callable[..., Path]


@dataclass(frozen=True)
class Golden:
    """A golden folder, loaded: its target, head and expected arrays."""

    target: Any
    head: Any
    expected: dict[str, mx.array]

    def read(self, length: int, *pieces: int) -> tuple[mx.array, mx.array, list[Any]]:
        """The tokens read, in pieces and the rest at once: logits, hidden states, and the cache."""
        tokens, cache = self.expected[f"tokens_{length}"], self.target.make_cache()
        edges = [sum(pieces[: i + 1]) for i in range(len(pieces))]
        found = [self.target.forward(piece, cache) for piece in mx.split(tokens, edges, axis=1)]
        logits, hidden = (mx.concatenate(rows, axis=1) for rows in zip(*found, strict=True))
        return logits, hidden, cache

    def drafts(self, hidden: mx.array, cache: list[Any], length: int) -> tuple[mx.array, mx.array]:
        """What three depths recycle [1, 3, H], and their logits [1, 3, V], from the last of the hidden states."""
        shared, hidden, states, logits = self.head.make_cache(cache), hidden[:, -1:], [], []
        for depth in range(DEPTHS):
            out = self.head(hidden, self.expected[f"next_tokens_{length}"][:, depth : depth + 1], shared)
            hidden = self.head.next_hidden(out)
            states.append(hidden)
            logits.append(self.head.logits(out))
        return mx.concatenate(states, axis=1), mx.concatenate(logits, axis=1)


@pytest.fixture(scope="module", params=["gemma4_e2b", "gemma4_31b", "gemma4_26b_a4b"])
def golden(request: pytest.FixtureRequest) -> Golden:
    folder = GOLDENS / request.param
    checkpoint = open_checkpoint(folder / "target")
    target = load_target(checkpoint)
    head = load_head(checkpoint, target, resolve_head(checkpoint, folder / "assistant"))
    return Golden(target, head, mx.load(str(folder / "expected.safetensors")))


def difference(ours: mx.array, expected: mx.array) -> float:
    assert ours.shape == expected.shape
    return float(mx.abs(ours - expected).max())


def assert_same_drafts(golden: Golden, hidden: mx.array, cache: list[Any], length: int) -> None:
    """Tokens outside the clusters that are looked into get the least logit minus 1 from transformers, not -inf."""
    states, logits = golden.drafts(hidden, cache, length)
    expected = golden.expected[f"head_logits_{length}"]
    assert difference(states, golden.expected[f"head_hidden_{length}"]) < STATES
    others = expected == expected.min(axis=-1, keepdims=True)
    ordered = "masked_embedding" in golden.head
    assert mx.array_equal(logits == -mx.inf, others if ordered else mx.zeros_like(others))
    seen = mx.isfinite(logits)
    assert difference(mx.where(seen, logits, 0), mx.where(seen, expected, 0)) < LOGITS
    if ordered:
        assert mx.all(others.sum(axis=-1) == others.shape[-1] * 6 // 8), "two of eight clusters"
        least = mx.where(seen, expected, mx.inf).min(axis=-1)
        assert mx.allclose(expected.min(axis=-1), least - 1)


# -- against transformers


@pytest.mark.parametrize("length", [SHORT, LONG])
def test_trunk_equals_transformers(golden: Golden, length: int) -> None:
    logits, hidden, _ = golden.read(length)
    assert difference(hidden, golden.expected[f"trunk_hidden_{length}"]) < STATES
    assert difference(logits, golden.expected[f"trunk_logits_{length}"]) < LOGITS


@pytest.mark.parametrize("length", [SHORT, LONG])
def test_drafts_equal_transformers_at_depths_1_to_3(golden: Golden, length: int) -> None:
    _, _, cache = golden.read(length)
    assert_same_drafts(golden, golden.expected[f"trunk_hidden_{length}"], cache, length)


@pytest.mark.parametrize(
    ("length", "pieces"), [(SHORT, (1,) * 11), (LONG, (1,) * 39), (LONG, (30, *(1,) * 9)), (LONG, (7, 1, 20, 1, 1))]
)
def test_trunk_and_drafts_together_equal_transformers(golden: Golden, length: int, pieces: tuple[int, ...]) -> None:
    """Rows written one at a time stand in a ring: in another order, and one of them is seen no more."""
    _, hidden, cache = golden.read(length, *pieces)
    assert_same_drafts(golden, hidden, cache, length)


def test_a_wrong_formula_would_be_seen(golden: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    """The goldens discriminate: a place, a row of hidden states or the window's edge off, and no norm near 1."""
    _, hidden, cache = golden.read(LONG)
    right = golden.expected[f"head_hidden_{LONG}"]
    assert difference(golden.drafts(hidden[:, :-1], cache, LONG)[0], right) > 100 * STATES
    with monkeypatch.context() as patch:
        patch.setattr(golden.head, "convention", DraftPosition("last"))
        assert difference(golden.drafts(hidden, cache, LONG)[0], right) > 100 * STATES
    monkeypatch.setattr(SharedKVCache, "fetch", lambda shared, _: ((shared._layer.keys, shared._layer.values), None))
    assert difference(golden.drafts(hidden, cache, LONG)[0], right) > 100 * STATES
    norms = [weight for name, weight in tree_flatten(golden.head.parameters()) if name.endswith("norm.weight")]
    assert len(norms) == 16
    assert all(float(mx.abs(weight - 1).max()) > 0.1 for weight in norms)


def test_the_other_reading_stands_one_place_earlier(golden: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    """And sees the same rows."""
    _, hidden, cache = golden.read(LONG)
    with monkeypatch.context() as patch:
        patch.setattr(golden.head, "convention", DraftPosition("last"))
        last = golden.drafts(hidden, cache, LONG)
    monkeypatch.setattr(SharedKVCache, "offset", property(lambda shared: shared._layer.offset - 1))
    for one, other in zip(last, golden.drafts(hidden, cache, LONG), strict=True):
        assert mx.array_equal(one, other)


def test_all_rows_at_once_are_the_rows_one_by_one(golden: Golden) -> None:
    """As the check of a new head feeds them; each row sees what there was when it was the last."""
    tokens = golden.expected[f"tokens_{LONG}"]
    following = mx.concatenate([tokens[:, 1:], golden.expected[f"next_tokens_{LONG}"][:, :1]], axis=1)
    _, hidden, cache = golden.read(LONG)
    at_once = golden.head.logits(golden.head(hidden, following, golden.head.make_cache(cache)))
    for count in (1, 2, 15, 16, 17, 18, 33, LONG):
        cache = golden.target.make_cache()
        golden.target.forward(tokens[:, :count], cache)
        row = slice(count - 1, count)
        alone = golden.head.logits(golden.head(hidden[:, row], following[:, row], golden.head.make_cache(cache)))
        assert mx.allclose(at_once[:, row], alone, atol=LOGITS), count


# -- loading


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"hidden": 96}, "backbone_hidden_size 96, the model 64"),
        ({"vocab": 320}, "vocab_size 320, the model 288"),
        ({"head_dim": 64}, "head_dim 64, the model 32"),
        ({"global_head_dim": 32}, "global_head_dim 32, the model 64"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_assistant_of_another_model_is_refused(
    gemma_checkpoint: Checkpoints, tmp_path: Path, sizes: dict[str, int], said: str
) -> None:
    with pytest.raises(HeadError, match=said):
        load(gemma_checkpoint(), head=tiny.assistant(tmp_path, **sizes))


def test_heads_of_other_families_are_refused(
    gemma_checkpoint: Checkpoints,
    assistant: Checkpoints,
    raw_checkpoint: Checkpoints,
    nextn_checkpoint: Checkpoints,
    tmp_path: Path,
) -> None:
    gemma, qwen, glm = gemma_checkpoint(), raw_checkpoint("qwen3_5"), nextn_checkpoint("glm4_moe")
    for model, family in ((qwen, "qwen-mtp"), (glm, "nextn")):
        with pytest.raises(HeadError, match=f"of the family gemma4-assistant; this model takes one of {family}"):
            load(model, head=assistant())
    for head, family in ((qwen, "qwen-mtp"), (glm, "nextn")):
        with pytest.raises(HeadError, match=f"of the family {family}; this model takes one of gemma4-assistant"):
            load(gemma, head=head)
    with pytest.raises(HeadError, match="not those of a Gemma 4 assistant"):  # mlx-vlm's types do not tell the family
        load(gemma, head=tiny.drafter(qwen, tmp_path / "drafter"))
    for head in (raw_checkpoint("qwen3_5", head=False), gemma):
        with pytest.raises(HeadError, match=f"{head} has no MTP head"):
            load(gemma, head=head)


def test_without_its_assistant_the_model_decodes_plainly(gemma_checkpoint: Checkpoints) -> None:
    engine = load(gemma_checkpoint())
    assert engine.mtp is None
    assert "is a model of its own" in (engine.plain_because or "")
    assert engine.generate([5, 9, 20], GenerationOptions(max_tokens=8)).tokens == reference(engine, [5, 9, 20], 8)


def test_an_assistant_is_the_same_however_it_is_published(
    gemma_checkpoint: Checkpoints, assistant: Checkpoints
) -> None:
    """With or without the copy of its embeddings, and under the name of the 12B model's."""
    plain = load(gemma_checkpoint(), head=assistant()).mtp
    for other in (assistant(lm_head=True), assistant(unified=True)):
        assert_equal(parameters(load(gemma_checkpoint(), head=other).mtp), parameters(plain))


def test_an_assistant_is_cast_to_what_its_model_computes_in(
    gemma_checkpoint: Checkpoints, assistant: Checkpoints
) -> None:
    head = load(gemma_checkpoint(dtype="bfloat16"), head=assistant()).mtp
    kept = "masked_embedding.token_ordering"
    assert {name for name, value in parameters(head).items() if value.dtype != mx.bfloat16} == {kept}


def parameters(head: Any) -> dict[str, mx.array]:
    return dict(tree_flatten(head.parameters()))


@pytest.mark.parametrize(
    "damaged",
    cases(
        ["pre_projection.weight", "model.layers.2.mlp.up_proj.weight", "model.norm.weight"],
        default=["model.layers.2.mlp.up_proj.weight"],
    ),
)
def test_a_damaged_assistant_changes_no_token(gemma_checkpoint: Checkpoints, tmp_path: Path, damaged: str) -> None:
    """Its drafts are no numbers; they are refused, and the check of a new head says why."""
    folder, prompt = tiny.assistant(tmp_path), [5, 9, 20, 7]
    weights = tiny.load_weights(folder)
    tiny.save_weights(folder, weights | {damaged: weights[damaged] * mx.nan}, made_by="pt")
    engine = load(gemma_checkpoint(), head=folder)
    assert generated(engine, prompt, 16, 3) == reference(engine, prompt, 16)
    seeded, plain = (
        engine.generate(prompt, GenerationOptions(temperature=1.0, seed=3, max_tokens=12, depth=d)).tokens
        for d in (3, 0)
    )
    assert seeded == plain
    assert engine.mtp
    assert not self_check(engine.target, engine.mtp, prompt).finite


def test_heads_that_do_not_divide_are_refused(gemma_checkpoint: Checkpoints, assistant: Checkpoints) -> None:
    """No tensor's shape tells: the first draft would fail in the attention."""
    with pytest.raises(HeadError, match="3 attention heads; expected a multiple of the model's 2"):
        load(gemma_checkpoint(style="31B"), head=assistant(style="31B", heads=3))


def test_an_assistant_without_clusters_need_not_count_them(gemma_checkpoint: Checkpoints, tmp_path: Path) -> None:
    folder = tiny.assistant(tmp_path / "assistant", style="31B")
    config = json.loads((folder / "config.json").read_text())
    del config["num_centroids"], config["centroid_intermediate_top_k"]
    tiny.write_json(folder / "config.json", config)
    assert load(gemma_checkpoint(style="31B"), head=folder).head == "gemma4-assistant"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"text_config": {"vocab_size": 288}}, "no text_config with num_hidden_layers"),
        ({"text": {"num_hidden_layers": 10**9}}, "its config has num_hidden_layers 1000000000, and the files hold "),
        ({"centroid_intermediate_top_k": 99}, "looks into 99 of 8 clusters of 288 tokens"),
        ({"centroid_intermediate_top_k": 0}, "looks into 0 of 8 clusters"),
        ({"num_centroids": 7}, "2 of 7 clusters of 288 tokens"),
        ({"text": {"layer_types": ["sliding_attention"] * 2 + ["chunked_attention"]}}, "'chunked_attention'"),
        ({"text": {"layer_types": ["sliding_attention"]}}, "the assistant has layers"),
        ({"text": {"num_attention_heads": 0}}, "the assistant has 0 attention heads"),
    ],
    ids=str,
)
def test_a_config_that_cannot_be_is_answered(
    gemma_checkpoint: Checkpoints, tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    folder = tiny.assistant(tmp_path / "assistant")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= change.pop("text", {})
    tiny.write_json(folder / "config.json", config | change)
    with pytest.raises(HeadError, match=says):
        load(gemma_checkpoint(), head=folder)
