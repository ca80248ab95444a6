"""`python -m mlxmtp.engine.follow`: a rank after the first, which loads and generates what rank 0 does."""

from __future__ import annotations

import os
import sys
import traceback
from contextlib import suppress
from typing import Any, NoReturn

from mlxmtp.errors import MlxmtpError
from mlxmtp.ranks import OutOfStepError, Ranks
from mlxmtp.ranks.join import join


def follow(ranks: Ranks) -> NoReturn:
    """Load and generate what rank 0 does; the text goes nowhere. The process ends when rank 0 is gone.

    What rank 0 reports to its user as an error is one here too, at the same place, and needs no report.

    Raises:
        OutOfStepError: this rank has other tokens than rank 0.
    """
    from mlxmtp.engine.loading import load
    from mlxmtp.engine.prefix_cache import PrefixCache
    from mlxmtp.engine.request import GenerationOptions

    engine: Any = None
    caches: dict[int, PrefixCache] = {}
    while True:
        kind, content = ranks.agree()
        with suppress(MlxmtpError):
            if kind == "load":
                engine = None  # two models may not fit
                caches.clear()
                path, head, draft_vocab, mtp, device = content
                engine = load(path, head=head, draft_vocab=draft_vocab, mtp=mtp, device=device, ranks=ranks)
            else:
                tokens, options, cache, raw, prefill_tokens, boundaries, opening = content
                for _ in engine.stream(
                    tokens,
                    GenerationOptions(**options),
                    raw=raw,
                    prefill_tokens=prefill_tokens,
                    prefix_cache=caches.setdefault(cache[0], PrefixCache(cache[1])) if cache else None,
                    boundaries=boundaries,
                    opening=opening,
                ):
                    pass


def main() -> NoReturn:
    """Join rank 0 and follow it."""
    try:
        follow(join())
    except (OutOfStepError, MlxmtpError) as error:
        print(error, file=sys.stderr, flush=True)  # noqa: T201 - rank 0 passes it on
    except BaseException:
        traceback.print_exc()
    os._exit(1)  # the thread that reads the pipe is still there


if __name__ == "__main__":
    main()
