"""From a caller's prompt to the token ids that the model reads."""

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from os.path import commonprefix
from typing import Any, TypeVar

from mlxmtp.errors import PromptError

T = TypeVar("T")
Message = Mapping[str, Any]
Prompt = str | Sequence[Message] | Sequence[int]

SYSTEM_ROLES = ("system", "developer")
PROBES = ("a", "b")
"""Messages of two other users: the prompts of all three share exactly the system prompt and the tools."""


@dataclass(frozen=True)
class Rendered:
    """A prompt as the model reads it.

    Args:
        tokens: its token ids.
        boundaries: ascending token counts after which other prompts are likely to branch: after the system prompt with
            its tools, after the last user message, and after the last message.
    """

    tokens: list[int]
    boundaries: tuple[int, ...] = ()


def encode(tokenizer: Any, prompt: Prompt, *, raw: bool, thinking: bool | None = None) -> list[int]:
    """Return the token ids of a prompt; arguments and errors as in `render_prompt`."""
    return render_prompt(tokenizer, prompt, raw=raw, thinking=thinking).tokens


def render_prompt(tokenizer: Any, prompt: Prompt, *, raw: bool, thinking: bool | None = None) -> Rendered:
    """Return the token ids of a text, of chat messages, or of given ids; only messages have boundaries.

    A text becomes one user message where the tokenizer has a chat template, unless `raw`.

    Args:
        tokenizer: mlx-lm's `TokenizerWrapper`.
        thinking: asks the template for an answer with or without thinking, where it has the choice; None: its default.

    Raises:
        PromptError: the prompt is empty or malformed, or has messages where the model has no chat template.
    """
    if not prompt:
        raise PromptError("the prompt is empty; expected a text, chat messages or token ids")
    if isinstance(prompt, str):
        if raw or not tokenizer.has_chat_template:
            return Rendered(_not_empty(_tokenise(_ids, tokenizer, prompt, add_special_tokens=True)))
        return render(tokenizer, [{"role": "user", "content": prompt}], thinking=thinking)
    if all(isinstance(item, int) for item in prompt):
        return Rendered(_in_vocabulary(prompt, len(tokenizer)))  # type: ignore[arg-type]
    if not all(isinstance(item, Mapping) for item in prompt):
        raise PromptError("the prompt mixes kinds; expected a text, a list of chat messages or a list of token ids")
    return render(tokenizer, prompt, thinking=thinking)  # type: ignore[arg-type]


def render(
    tokenizer: Any,
    messages: Sequence[Message],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    thinking: bool | None = None,
    options: Mapping[str, Any] | None = None,
) -> Rendered:
    """Return the token ids of chat messages in the model's chat template, up to where the answer begins.

    Args:
        tokenizer: mlx-lm's `TokenizerWrapper`.
        tools: definitions of functions, as the template expects them.
        thinking: as in `render_prompt`.
        options: further variables of the template.

    Raises:
        PromptError: the model has no chat template, or the template refuses these messages.
    """
    text_of = partial(apply_template, tokenizer, tools=tools, thinking=thinking, options=options)
    text = text_of(messages)
    others = [*_other_conversations(messages, has_tools=bool(tools)), *_earlier_ends(messages)]
    return _with_boundaries(tokenizer, text, _shared_characters(text, others, text_of))


def apply_template(
    tokenizer: Any,
    messages: Sequence[Message],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    thinking: bool | None = None,
    options: Mapping[str, Any] | None = None,
    add_generation_prompt: bool = True,
) -> str:
    """Return the text of chat messages in the chat template; arguments and errors as in `render`."""
    if not tokenizer.has_chat_template:
        raise PromptError("this model has no chat template for messages; give the prompt as a text")
    variables = dict(options or {})
    if tools:
        variables["tools"] = list(tools)
    if thinking is not None:
        variables["enable_thinking"] = thinking
    try:
        text = tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=add_generation_prompt, tokenize=False, **variables
        )
    except Exception as error:  # templates raise errors of their own, and trip over messages that they do not expect
        raise PromptError(f"the model's chat template refuses these messages: {error}") from error
    return str(text)


def count_tokens(tokenizer: Any, text: str) -> int:
    """Return the number of tokens of a text, without the tokens that some models put before it.

    Raises:
        PromptError: the text is not Unicode.
    """
    return len(_tokenise(_ids, tokenizer, text))


def _other_conversations(messages: Sequence[Message], *, has_tools: bool) -> list[list[list[Message]]]:
    """Two other conversations with the same system prompt, as one group; none without a system prompt or tools."""
    count = next((i for i, message in enumerate(messages) if message.get("role") not in SYSTEM_ROLES), len(messages))
    if not (count or has_tools):
        return []
    return [[[*messages[:count], {"role": "user", "content": probe}] for probe in PROBES]]


def _earlier_ends(messages: Sequence[Message]) -> list[list[list[Message]]]:
    """The conversation up to its last user message, and up to its last message; each a group."""
    users = [i for i, message in enumerate(messages, start=1) if message.get("role") == "user"]
    return [[list(messages[:end])] for end in sorted({*users[-1:], len(messages)})]


def _shared_characters(text: str, groups: list[list[list[Message]]], text_of: Callable[..., str]) -> list[int]:
    """For each group, the number of characters that `text` shares with all its conversations, left unanswered."""
    lengths = []
    for group in groups:
        with suppress(Exception):  # a template that needs the messages left out: no boundary
            lengths.append(_common_length([text, *(text_of(other, add_generation_prompt=False) for other in group)]))
    return lengths


def _common_length(sequences: list[Any]) -> int:
    return len(commonprefix(sequences))  # noqa: RUF071 - of characters or tokens; nothing here is a path


def _with_boundaries(tokenizer: Any, text: str, ends: list[int]) -> Rendered:
    """The tokens of a rendered text, with a boundary after the tokens within its first `end` characters, for each."""
    if getattr(tokenizer, "is_fast", False):
        tokens, token_ends = _tokenise(_ids_with_ends, tokenizer, text)
        counts = {bisect_right(token_ends, end) for end in ends}
    else:
        tokens = _tokenise(_ids, tokenizer, text)
        counts = {_common_length([tokens, _ids(tokenizer, text[:end])]) for end in ends}
    return Rendered(_not_empty(tokens), tuple(sorted(count for count in counts if 0 < count < len(tokens))))


def _ids_with_ends(tokenizer: Any, text: str) -> tuple[list[int], list[int]]:
    """Token ids, and the character at which each token ends."""
    hugging_face = tokenizer._tokenizer  # the wrapper forwards attributes, not calls
    encoding = hugging_face(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return list(encoding["input_ids"]), [end for _, end in encoding["offset_mapping"]]


def _ids(tokenizer: Any, text: str, **options: Any) -> list[int]:
    return list(tokenizer.encode(text, verbose=False, **{"add_special_tokens": False, **options}))


def _tokenise(function: Callable[..., T], *arguments: Any, **options: Any) -> T:
    try:
        return function(*arguments, **options)
    except Exception as error:  # half a surrogate pair, which each tokenizer refuses in its own way
        text = next((argument for argument in arguments if isinstance(argument, str)), "")
        torn = next((i for i, character in enumerate(text) if "\ud800" <= character <= "\udfff"), None)
        why = error if torn is None else f"its character {torn + 1} is half a surrogate pair"
        raise PromptError(f"the prompt cannot be tokenised: {why}; expected Unicode text") from error


def _not_empty(tokens: list[int]) -> list[int]:
    if not tokens:
        raise PromptError("the prompt has no tokens; expected at least one")
    return tokens


def _in_vocabulary(ids: Sequence[int], vocab_size: int) -> list[int]:
    if bad := [i for i in ids if not 0 <= i < vocab_size]:
        raise PromptError(f"token id {bad[0]} is outside the vocabulary; expected 0 to {vocab_size - 1}")
    return list(ids)
