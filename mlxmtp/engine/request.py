"""The options of one turn, the same for the library, the command line, the server, the worker and the chat.

Imports no MLX: the processes of the server and of the chat build these options too.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

from mlxmtp.errors import OptionError
from mlxmtp.limits import MAX_DEPTH, MAX_LOGPROBS, VerifyMode

if TYPE_CHECKING:
    from mlxmtp.decoding.sampling import Sampling

LogitBias = Mapping[int, float] | Iterable[tuple[int, float]]


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """How one turn is generated.

    The sampling fields mean what they mean in vLLM's `SamplingParams` and in mlx-lm's `make_sampler`. Logits are
    changed in this order: bias, repetition penalty, frequency and presence penalty, grammar. Then the chain follows:
    top-p, min-p, top-k, temperature. Bias, penalties and grammar also act at temperature 0.

    Args:
        temperature: 0 takes the most likely token (greedy); otherwise at least 1e-6.
        top_p: in (0, 1]; keeps the smallest set of tokens with at least this probability mass. 1 keeps all.
        top_k: >= 0; keeps this many tokens. 0 keeps all.
        min_p: in [0, 1]; drops tokens less likely than this share of the most likely token.
        seed: in [0, 2**64); the same seed gives the same tokens. None draws a new seed for each turn.
        frequency_penalty: subtracted from a token's logit for each time that this turn has generated it. 0 is off.
        presence_penalty: subtracted once from the logit of each token that this turn has generated. 0 is off.
        repetition_penalty: > 0; the logit of each token of the prompt or of the turn is divided by it where positive,
            multiplied where negative. 1 is off.
        logit_bias: added to the logits of these token ids; stored as pairs (token id, bias).
        verify: how drafts are verified when sampling: "token" (Leviathan et al., 2023), "block" (Sun et al., 2024), or
            "seeded", which gives the tokens of plain decoding with the same seed. None: "seeded" with a seed, else
            "block".
        depth: number of drafts in a round, 0 to `MAX_DEPTH`. 0 decodes plainly; None lets the policy choose.
        max_tokens: most tokens of the answer; None: as many as the context has room for.
        thinking: asks the chat template for an answer with or without thinking; None: the template's default.
        thinking_budget: most tokens of a thinking that begins the turn; at the limit the model's own marker ends it.
            None: no limit.
        stop: strings that end the turn; they are not part of the text, and not looked for in the thinking. A single
            string counts as one.
        json_schema: the answer is JSON of this schema, unless `max_tokens` ends it; {"type": "object"} for any object.
            Where the prompt opens the thinking, the schema applies after the end of the thinking.
        tool_calls: the turn may call tools: with `json_schema`, calls may come instead of the JSON, and calls are not
            searched for stop strings.
        call_grammar: the rest of the tool call that the prompt has begun, up to the marker that ends it, as a grammar
            in llguidance's dialect of Lark. The turn ends after the call.
        logprobs: 0 to `MAX_LOGPROBS`; returns the log-probability of each token, and of this many of the most likely
            tokens, both before bias, penalties, grammar and temperature. None: no log-probabilities.

    Raises:
        OptionError: a value is out of range.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: LogitBias = ()
    verify: VerifyMode | None = None
    depth: int | None = None
    max_tokens: int | None = 256
    thinking: bool | None = None
    thinking_budget: int | None = None
    stop: str | Sequence[str] = ()
    json_schema: Mapping[str, Any] | None = None
    tool_calls: bool = False
    call_grammar: str | None = None
    logprobs: int | None = None

    def __post_init__(self) -> None:
        self._check_sampling()
        if self.verify is not None:
            modes = get_args(VerifyMode)
            _require("verify", self.verify, self.verify in modes, f"one of {', '.join(modes)}")
        check_depth(self.depth)
        if self.max_tokens is not None:
            check_count("max_tokens", self.max_tokens)
        if self.thinking_budget is not None:
            check_count("thinking_budget", self.thinking_budget)
        object.__setattr__(self, "stop", _stop_strings(self.stop))
        if self.logprobs is not None:
            in_range = isinstance(self.logprobs, int) and 0 <= self.logprobs <= MAX_LOGPROBS
            _require("logprobs", self.logprobs, in_range, f"a whole number from 0 to {MAX_LOGPROBS}")

    @property
    def greedy(self) -> bool:
        """Whether each token is the most likely one."""
        return self.temperature == 0

    @property
    def deterministic(self) -> bool:
        """Whether the tokens follow from the logits alone: by argmax, or by a seed."""
        return self.greedy or (self.seed is not None and self.verify in (None, "seeded"))

    @property
    def sampling(self) -> Sampling:
        """The fields of the sampling chain, as `mlxmtp.decoding` takes them. Imports MLX."""
        from mlxmtp.decoding.sampling import Sampling

        return Sampling(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            seed=self.seed,
            frequency_penalty=self.frequency_penalty,
            presence_penalty=self.presence_penalty,
            repetition_penalty=self.repetition_penalty,
            logit_bias=dict(self.logit_bias),
        )

    def _check_sampling(self) -> None:
        t, p, k, m, seed = self.temperature, self.top_p, self.top_k, self.min_p, self.seed
        _require("temperature", t, _is_finite(t) and (t == 0 or t >= 1e-6), "0 (greedy) or at least 1e-6")
        _require("top_p", p, _is_number(p) and 0 < p <= 1, "a number in (0, 1]; 1 switches it off")
        _require("top_k", k, isinstance(k, int) and k >= 0, "a whole number >= 0; 0 switches it off")
        _require("min_p", m, _is_number(m) and 0 <= m <= 1, "a number in [0, 1]; 0 switches it off")
        seed_fits = seed is None or (isinstance(seed, int) and 0 <= seed < 2**64)
        _require("seed", seed, seed_fits, "a whole number in [0, 2**64)")
        for name in ("frequency_penalty", "presence_penalty"):
            value = getattr(self, name)
            _require(name, value, _is_finite(value), "a finite number; 0 switches it off")
        r = self.repetition_penalty
        _require("repetition_penalty", r, _is_finite(r) and r > 0, "a finite number above 0; 1 switches it off")
        pairs = _bias_pairs(self.logit_bias)
        _require("logit_bias", self.logit_bias, pairs is not None, "a mapping of token ids to finite numbers")
        object.__setattr__(self, "logit_bias", pairs)


def recommended_in_words(recommended: Mapping[str, Any], chosen: Mapping[str, Any]) -> str:
    """Return the sampling fields of a turn that the model's files set, as `temperature 0.6, top-p 0.95`; "" for none.

    Args:
        recommended: by the model's files.
        chosen: by the user, in place of what is recommended.
    """
    plain = GenerationOptions()
    greedy = GenerationOptions(**{**recommended, **chosen}).greedy
    idle = ("temperature", "top_p", "top_k", "min_p") if greedy else ()
    used = (name for name in recommended if name not in (*chosen, *idle) and recommended[name] != getattr(plain, name))
    return ", ".join(f"{name.replace('_', '-')} {recommended[name]:g}" for name in used)


def check_depth(depth: int | None) -> None:
    """Raises OptionError: not None and not a depth from 0 to `MAX_DEPTH`."""
    if depth is not None:
        in_range = isinstance(depth, int) and 0 <= depth <= MAX_DEPTH
        _require("depth", depth, in_range, f"a whole number from 0 (plain) to {MAX_DEPTH}")


def check_count(name: str, value: int) -> None:
    """Raises OptionError: not a whole number of at least 1."""
    _require(name, value, isinstance(value, int) and value >= 1, "a whole number of at least 1")


def _require(name: str, value: object, ok: bool, expected: str) -> None:
    if not ok:
        raise OptionError(f"{name} is {value!r}; expected {expected}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max  # a whole number can be larger


def _bias_pairs(bias: LogitBias) -> tuple[tuple[int, float], ...] | None:
    """The pairs of a bias, each token once; None: not a bias."""
    try:
        pairs = tuple(dict(bias).items())
    except (TypeError, ValueError):
        return None
    valid = all(isinstance(token, int) and token >= 0 and _is_finite(value) for token, value in pairs)
    return pairs if valid else None


def _stop_strings(stop: str | Sequence[str]) -> tuple[str, ...]:
    strings = (stop,) if isinstance(stop, str) else tuple(stop)
    if "" in strings:
        raise OptionError("a stop string is empty; expected at least one character")
    return strings
