"""The sampler of a turn: its sampling chain, and the logits processors that its options ask for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mlxmtp.decoding.sampler import Sampler
from mlxmtp.engine.grammar import grammar_of
from mlxmtp.engine.request import GenerationOptions
from mlxmtp.engine.thinking_budget import budget_processors
from mlxmtp.errors import OptionError


def turn_sampler(
    options: GenerationOptions, prompt: list[int], tokenizer: Any, vocab_size: int, trie: Callable[[], Any]
) -> Sampler:
    """Return the sampler of a turn.

    Args:
        prompt: token ids.
        trie: makes the tokens' trie, for a grammar.

    Raises:
        OptionError: an option does not fit the model.
    """
    sampling = options.sampling
    if bad := [token for token in dict(sampling.logit_bias) if token >= vocab_size]:
        raise OptionError(f"logit_bias names token {bad[0]}; expected tokens from 0 to {vocab_size - 1}")
    processors = budget_processors(options, tokenizer, prompt)
    if options.json_schema is not None or options.call_grammar is not None:
        processors.append(grammar_of(options, trie(), tokenizer, prompt))
    return Sampler(sampling, options.verify, processors)
