"""Reports on a turn: statistics as lines of text or as one JSON object, and warnings."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from mlxmtp.exactness.guarantee import in_words
from mlxmtp.terminal import visible
from mlxmtp.units import size

if TYPE_CHECKING:
    from mlxmtp import Chunk, Engine, Stats

INTERRUPTED = "interrupted"


def warn(message: str) -> None:
    """Print a warning to standard error."""
    print(f"mlxmtp: warning: {visible(message)}", file=sys.stderr)  # noqa: T201


def as_json(engine: Engine, chunks: list[Chunk], plain: str | None, depth: int | None) -> dict[str, object]:
    """Return a turn as a JSON object.

    Args:
        plain: why the turn was decoded plainly. None: it was not.
        depth: drafts a round. None: auto.
    """
    last = chunks[-1]
    stats = last.stats.to_dict()
    del stats["prompt_tokens"], stats["tokens"]  # both are fields of the answer
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
        answer["promise"] = engine.guarantee.at(depth)
    else:
        answer["plain_because"] = plain
    return answer


def as_text(engine: Engine, last: Chunk, plain: str | None, depth: int | None, *, chosen: bool) -> str:
    """Return the statistics of a turn as lines. The first line is empty, to set them off from the text.

    Args:
        last: the turn's last chunk.
        plain, depth: as for `as_json`.
        chosen: the logits determine the tokens, because the turn is greedy or has a seed.
    """
    stats, ending = last.stats, last.finish_reason or INTERRUPTED
    rate = f" at {stats.decode_tps:,.1f} tok/s" if stats.decode_tps else ""  # a turn of one round has no rate
    rows = {
        "model": f"{engine.name} with {head(engine)}" if engine.head else engine.name,
        "prompt": f"{stats.prompt_tokens} tokens at {stats.prefill_tps:,.0f} tok/s, "
        f"first token after {stats.ttft_s:.2f} s",
        "output": f"{stats.tokens} tokens{rate} ({ending})",
        "MTP": f"off: {plain}" if plain else speculation(stats),
        "depth": stats.policy,
        "exact": "" if plain else in_words(engine.guarantee.at(depth), chosen=chosen),
        "time": shares(stats),
        "memory": f"{size(stats.peak_memory_bytes)} at the peak",
    }
    return "".join(f"\n{name:8}{row}" for name, row in rows.items() if row)


def head(engine: Engine) -> str:
    """Return the name of the head, with its repository if it is not the model's own."""
    source = engine.head_source
    if source is None or source.repo is None:
        named = f"its {engine.head} head"
    else:
        named = f"the {engine.head} head {source.repo}" + (", found by the model's name" if source.by_name else "")
    return named + (f", which drafts {len(engine.draft_tokens):,} tokens" if engine.draft_tokens else "")


def speculation(stats: Stats) -> str:
    """Return the tokens a round and the acceptance of drafts."""
    if not stats.drafted and not stats.looked_up:
        return "nothing was drafted"
    facts = [f"{stats.tokens_per_round:.2f} tokens a round"]
    if stats.drafted:
        by_depth = ", ".join(f"{share:.0%}" for share in stats.acceptance_by_depth)
        facts.append(f"drafts accepted at depth 1, 2, ...: {by_depth}")
    if stats.narrowed:
        facts.append(f"{stats.narrowed} of {stats.drafted} drafted from the narrowed vocabulary")
    if stats.looked_up:
        facts.append(f"looked up in the text: {stats.looked_up_accepted} of {stats.looked_up} accepted")
    return "; ".join(facts)


def shares(stats: Stats) -> str:
    """Return the shares of the phases in decoding time, estimated from the rounds that were timed by phase."""
    phases = {"verify": stats.verify_s, "draft": stats.draft_s, "other": stats.other_s}
    total = sum(phases.values())
    if not stats.timed_rounds or not total:
        return ""
    split = ", ".join(f"{name} {seconds / total:.0%}" for name, seconds in phases.items())
    return f"{split} (estimated from {stats.timed_rounds} of {stats.rounds} rounds)"
