"""A line for each request, on standard error."""

from __future__ import annotations

import sys
import time
from contextlib import suppress

from mlxmtp.decoding.stats import Stats


class Log:
    """Writes lines; a reader that has gone away does not matter."""

    def line(self, text: str) -> None:
        shown = "".join(c if c.isprintable() else " " for c in text)  # of what clients send, nothing steers a terminal
        with suppress(OSError):
            print(f"{time.strftime('%H:%M:%S')} {shown}", file=sys.stderr, flush=True)  # noqa: T201 - the log

    def request(
        self,
        what: str,
        status: int,
        seconds: float,
        *,
        agent: str = "",
        stats: Stats | None = None,
        reason: str = "",
        said: str = "",
    ) -> None:
        """A request has been answered, or not.

        Args:
            what: method and path. agent: the client's name. reason: how the turn ended. said: an error or a remark.
        """
        parts = [f"{what} {status}", agent.split(" ")[0][:40]]
        if stats:
            cached = f" ({stats.reused_tokens:,} cached)" if stats.reused_tokens else ""
            parts += [f"{stats.prompt_tokens:,}{cached} + {stats.tokens:,} tok", f"ttft {stats.ttft_s:.2f} s"]
            parts += [f"{stats.decode_tps:.1f} tok/s"] if stats.decode_tps else []
            parts += [f"{stats.tokens_per_round:.2f} tok/round"] if stats.drafted else []
        parts += [reason, f"{seconds:.2f} s", said]
        self.line(" · ".join(part for part in parts if part))
