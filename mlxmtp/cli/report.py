"""What is said besides the text: warnings, and about a turn lines for people, one object for programs."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from mlxmtp.exactness.verdict import in_words

if TYPE_CHECKING:
    from mlxmtp import Chunk, Engine, Stats

JUDGED_ROUNDS = 16
INTERRUPTED = "interrupted"


def warn(message: str) -> None:
    print(f"mlxmtp: warning: {message}", file=sys.stderr)


def as_json(engine: Engine, chunks: list[Chunk], plain: str | None, depth: int | None) -> dict[str, object]:
    """Of a turn at this depth; plain: why it decoded plainly, if it did."""
    last = chunks[-1]
    stats = last.stats.to_dict()
    del stats["prompt_tokens"], stats["tokens"]  # said outside
    answer: dict[str, object] = {
        "text": "".join(chunk.text for chunk in chunks),
        "tokens": [token for chunk in chunks for token in chunk.tokens],
        "prompt_tokens": last.stats.prompt_tokens,
        "finish_reason": last.finish_reason or INTERRUPTED,
        "model": engine.name,
        "head": engine.head,
        "stats": stats,
    }
    if engine.head_source and engine.head_source.repo:
        answer |= {"head_source": engine.head_source.repo, "head_found_by_name": engine.head_source.by_name}
    if plain is None:
        answer["promise"] = engine.verdict.at(depth)
    else:
        answer["plain_because"] = plain
    return answer


def as_text(engine: Engine, last: Chunk, plain: str | None, depth: int | None, *, chosen: bool) -> str:
    """The statistics of a turn that ended with `last`, set off from the text above them.

    depth, plain: as for `as_json`. chosen: its tokens follow from the logits, by argmax or a given seed.
    """
    stats, ending = last.stats, last.finish_reason or INTERRUPTED
    rate = f" at {stats.decode_tps:,.1f} tok/s" if stats.decode_tps else ""  # one round has no rate
    rows = {
        "model": f"{engine.name} with {head(engine)}" if engine.head else engine.name,
        "prompt": f"{stats.prompt_tokens} tokens at {stats.prefill_tps:,.0f} tok/s, "
        f"first token after {stats.ttft_s:.2f} s",
        "output": f"{stats.tokens} tokens{rate} ({ending})",
        "MTP": f"off: {plain}" if plain else speculation(stats),
        "depth": stats.policy,
        "exact": "" if plain else in_words(engine.verdict.at(depth), chosen=chosen),
        "time": shares(stats),
        "memory": f"{stats.peak_memory_bytes / 1e6:,.0f} MB at the peak",
    }
    return "".join(f"\n{name:8}{row}" for name, row in rows.items() if row)


def head(engine: Engine) -> str:
    """A head that stands apart is named, and it is said if nobody asked for it."""
    source = engine.head_source
    if source is None or source.repo is None:
        named = f"its {engine.head} head"
    else:
        named = f"the {engine.head} head {source.repo}" + (", found by the model's name" if source.by_name else "")
    return named + (f", which drafts {len(engine.draft_tokens):,} tokens" if engine.draft_tokens else "")


def speculation(stats: Stats) -> str:
    if not stats.drafted and not stats.looked_up:
        return "nothing was drafted"
    parts = [f"{stats.tokens_per_round:.2f} tokens a round"]
    if stats.drafted:
        by_depth = ", ".join(f"{share:.0%}" for share in stats.acceptance_by_depth)
        parts.append(f"drafts accepted at depth 1, 2, ...: {by_depth}")
    if stats.looked_up:
        parts.append(f"looked up in the text: {stats.looked_up_accepted} of {stats.looked_up} accepted")
    return "; ".join(parts)


def shares(stats: Stats) -> str:
    """Where a round's time goes: an estimate, for only a few rounds are timed in parts."""
    parts = {"verify": stats.verify_s, "draft": stats.draft_s, "other": stats.other_s}
    total = sum(parts.values())
    if not stats.timed_rounds or not total:
        return ""
    split = ", ".join(f"{name} {seconds / total:.0%}" for name, seconds in parts.items())
    return f"{split} (estimated from {stats.timed_rounds} of {stats.rounds} rounds)"


def warning(stats: Stats) -> str | None:
    """A head that hardly ever guesses right is never passed over in silence.

    Judged by the first draft of a round, which depends on no other, and not before there are some.
    """
    from mlxmtp.heads.check import USEFUL

    count = stats.drafted_by_depth[0] if stats.drafted_by_depth else 0
    if count < JUDGED_ROUNDS or stats.acceptance_by_depth[0] >= USEFUL:
        return None
    return (
        f"only {stats.acceptance_by_depth[0]:.0%} of {count} first drafts were right; "
        "check that the head belongs to this model, or use --no-mtp"
    )
