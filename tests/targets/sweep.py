"""One tiny model of each type, decoded by mlx-lm and by mlxmtp: tokens, prefix reuse, rollback."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import mlx.core as mx
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import KVCache, make_prompt_cache
from mlx_lm.utils import load_model

from mlxmtp.checkpoints import open_checkpoint
from mlxmtp.decoding.depth import FixedDepth
from mlxmtp.decoding.loop import generate, never_stop
from mlxmtp.decoding.sampler import Sampler
from mlxmtp.decoding.sampling import Sampling
from mlxmtp.decoding.sequence import Sequence
from mlxmtp.decoding.snapshots import Position
from mlxmtp.engine.prefix_file import pack, read_header, unpack, write_sequence
from mlxmtp.targets import Target, leaf_caches, load_target
from mlxmtp.targets.rollback import ModelRows
from mlxmtp.targets.sharing import why_not_shared
from mlxmtp.targets.target import SEES_AHEAD
from tests.scripted import assert_same_state, snapshot
from tests.targets.every_model import ALIKE, BY_CHUNKS, VOCAB, WINDOW, random_weights, tiny_config
from tests.tiny import save_weights, write_json

PROMPT = [(7 * i * i + 3 * i + 5) % VOCAB for i in range(21)]
BRANCH = 13
"""A boundary inside the prompt, past the window."""
COUNT = 12
KEPT = 6
"""Tokens of a kept answer: it ends within a chunk of attention in chunks, whose earlier rows are gone."""
PASS = [40, 7, 91, 40, 15]
CONTEXTS = (WINDOW - 3, len(PROMPT))
"""Tokens before a pass: one that wraps the window, and one after it has wrapped."""
SHARED_CONTEXTS = (WINDOW - 3, 2, len(PROMPT), WINDOW)
"""Tokens of the sequences before passes that they share."""


class Row(NamedTuple):
    """What was seen of one model type.

    Args:
        equal: greedy tokens and caches are mlx-lm's.
        prefix: turns that continue, branch off and come from a file are those of a fresh sequence.
        rollback: "exact", also where the whole model runs row by row; or "no" with why passes cannot be rolled back.
        shares: sequences that share passes have the bits of each alone: "yes"; "attention modules apart", where those
            run once for each sequence; or "takes turns" with why they cannot share passes.
    """

    kind: str
    equal: str
    prefix: str
    rollback: str
    shares: str


def sweep(folder: Path, kinds: Iterable[str]) -> Iterator[Row]:
    """Yield a row for each model type; an assertion names the type whose outcome is another than plain decoding's."""
    for kind in kinds:
        yield examine(kind, folder / kind)


def examine(kind: str, folder: Path) -> Row:
    """Write a tiny checkpoint of one type, and compare what mlx-lm and mlxmtp make of it."""
    write_checkpoint(kind, folder)
    theirs, _ = load_model(folder)
    target = load_target(open_checkpoint(folder))
    plain = target.reversible and not target.latent and {*map(type, leaf_caches(target.make_cache()))} == {KVCache}
    assert plain == (kind in ALIKE), kind
    return Row(
        kind,
        equal=check_tokens(kind, target, theirs),
        prefix=check_prefix(kind, target, theirs, folder),
        rollback=check_rollback(kind, target),
        shares=check_shared(kind, target),
    )


def write_checkpoint(kind: str, folder: Path, own: Mapping[str, Any] = MappingProxyType({})) -> None:
    """Write config.json and random float32 weights under mlx-lm's own names, as its conversions have them.

    Args:
        own: keys of config.json in place of the type's.
    """
    config = tiny_config(kind) | own
    save_weights(folder, random_weights(kind, config), made_by="mlx")
    write_json(folder / "config.json", config)


def check_tokens(kind: str, target: Target, theirs: Any) -> str:
    """Compare greedy tokens, and the caches that they leave, with those of mlx-lm's own loop."""
    cache = make_prompt_cache(theirs)
    expected = reference(theirs, PROMPT, COUNT, cache)
    sequence = Sequence(target, None)
    sequence.prefill(PROMPT)
    assert decode(sequence, COUNT + 1)[:-1] == expected, kind  # the last token is in no cache
    assert_same_state(snapshot(sequence.cache), snapshot(cache), kind)
    return "yes"


def check_prefix(kind: str, target: Target, theirs: Any, folder: Path) -> str:
    """Compare turns on kept caches, in memory and from a file, with mlx-lm's on fresh ones."""
    if kind in SEES_AHEAD:
        return "not compared"
    sequence = Sequence(target, None)
    sequence.prefill(PROMPT, boundaries=(BRANCH,))
    decode(sequence, KEPT)
    assert sequence.can_snapshot, kind
    kept = folder / "kept.safetensors"
    write_sequence(kept, *pack(sequence, sequence.snapshots))
    from_file = unpack(read_header(kept), target, None)
    one_more, other_end = [*PROMPT[:BRANCH], 9], [*PROMPT[:BRANCH], 9, 8, 7, 6]
    next_turn = [*sequence.tokens, 5, 6, 7, 8]
    read_apart = [BRANCH, len(PROMPT) - 1 - BRANCH, *[1] * KEPT]
    turns = [
        (one_more, [BRANCH], [sequence]),
        (other_end, [BRANCH], [sequence]),  # from the same snapshot again
        (next_turn, read_apart, [sequence, from_file]),
    ]
    for prompt, chunks, sources in turns:
        expected = reference(theirs, prompt, 3, chunks=chunks if kind in BY_CHUNKS else [])
        for source in sources:
            position = source.prefix_info.longest_reusable_prefix(prompt, drafting=False)
            assert position == Position(sum(chunks)), (kind, len(prompt))
            fork = source.fork_at(prompt, position, drafting=False)
            fork.prefill(prompt[len(fork.tokens) :])
            assert decode(fork, 3) == expected, (kind, len(prompt))
    return "as in the same chunks" if kind in BY_CHUNKS else "yes"


def check_rollback(kind: str, target: Target) -> str:
    """Take a pass back to some of its tokens: caches and next logits are those of as many tokens read one by one."""
    if not target.reversible:
        return f"no: {target.irreversible}"
    for context in CONTEXTS:
        start = target.make_cache()
        target.forward(mx.array([PROMPT[:context]]), start)
        one_by_one, states, logits = deepcopy(start), [snapshot(start)], []
        for token in PASS:
            logits.append(target.forward(mx.array([[token]]), one_by_one)[0])
            states.append(snapshot(one_by_one))
        for keep in (0, 2, len(PASS)):
            cache, what = deepcopy(start), (kind, context, keep)
            opened = target.open(mx.array([PASS]), cache)
            assert mx.array_equal(opened.logits, mx.concatenate(logits, axis=1)), what
            opened.commit(keep)
            assert_same_state(snapshot(cache), states[keep], what)
            if keep < len(PASS):
                assert mx.array_equal(target.forward(mx.array([PASS[keep : keep + 1]]), cache)[0], logits[keep]), what
    return f"exact{', the whole model row by row' if isinstance(target._rollback, ModelRows) else ''}"


def check_shared(kind: str, target: Target) -> str:
    """Compare passes of several sequences, each kept to another count, with each sequence's own passes, bit for bit.

    One sequence wraps its window, one has wrapped it and one has not: the counts kept go round over the sequences.
    """
    if why := why_not_shared(target):
        return f"takes turns: {why}"
    together = [target.make_cache() for _ in SHARED_CONTEXTS]
    for context, cache in zip(SHARED_CONTEXTS, together, strict=True):
        target.forward(mx.array([PROMPT[:context]]), cache)
    alone = deepcopy(together)
    for shift in range(len(PASS) + 1):
        tokens = [mx.array([PASS[: len(PASS) - (b + shift) % 3]]) for b in range(len(together))]
        apart = [target.open(*one) for one in zip(tokens, alone, strict=True)]
        for b, (one, other) in enumerate(zip(target.open_shared(tokens, together), apart, strict=True)):
            assert mx.array_equal(one.logits, other.logits), (kind, shift, b)
            assert mx.array_equal(one.hidden, other.hidden), (kind, shift, b)
            keep = min((shift + 2 * b) % (len(PASS) + 1), tokens[b].shape[1])
            one.commit(keep)
            other.commit(keep)
            assert_same_state(snapshot(together[b]), snapshot(alone[b]), (kind, shift, b, keep))
    return "attention modules apart" if target.whole_attention else "yes"


def reference(
    model: Any, prompt: list[int], count: int, cache: list[Any] | None = None, chunks: Iterable[int] = ()
) -> list[int]:
    """Return greedy tokens of mlx-lm's `generate_step`, which reads `chunks` of the prompt first, and the rest then."""
    cache = make_prompt_cache(model) if cache is None else cache
    for length in chunks:
        model(mx.array([prompt[:length]]), cache=cache)
        prompt = prompt[length:]
    return [token for token, _ in generate_step(mx.array(prompt), model, max_tokens=count, prompt_cache=cache)]


def decode(sequence: Sequence, count: int) -> list[int]:
    """Return greedy tokens after a prefilled sequence, without drafts."""
    rounds = generate(sequence.target, None, sequence, Sampler(Sampling()), FixedDepth(0), never_stop, count)
    return [token for one in rounds for token in one.tokens]
