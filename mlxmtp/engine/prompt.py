"""From what a caller asks to the token ids that the model reads."""

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

SYSTEM = ("system", "developer")
PROBES = ("a", "b")
"""What two other users say: where their prompts part, the head that all conversations share ends."""


@dataclass(frozen=True)
class Rendered:
    """A prompt as the model reads it.

    Args:
        tokens: its token ids.
        boundaries: ascending numbers of tokens, where other prompts are likely to part from this one: behind the system
            prompt with its tools, behind the last user message, behind the last message.
    """

    tokens: list[int]
    boundaries: tuple[int, ...] = ()


def encode(tokenizer: Any, prompt: Prompt, *, raw: bool, thinking: bool | None = None) -> list[int]:
    """Token ids of a prompt, as `read`."""
    return read(tokenizer, prompt, raw=raw, thinking=thinking).tokens


def read(tokenizer: Any, prompt: Prompt, *, raw: bool, thinking: bool | None = None) -> Rendered:
    """Token ids of a text, of chat messages, or of ids as they are; boundaries are messages' only.

    A text becomes one user message where the tokenizer has a chat template, unless `raw`.

    Args:
        tokenizer: mlx-lm's `TokenizerWrapper`.
        thinking: asks the template for an answer with or without thinking, where it has the choice; None: its default.

    Raises:
        PromptError: there is nothing to read, or messages for a model without a chat template.
    """
    if not prompt:
        raise PromptError("the prompt is empty; expected a text, chat messages or token ids")
    if isinstance(prompt, str):
        if raw or not tokenizer.has_chat_template:
            return Rendered(_checked(_tokenised(_ids, tokenizer, prompt, add_special_tokens=True)))
        return render(tokenizer, [{"role": "user", "content": prompt}], thinking=thinking)
    if all(isinstance(item, int) for item in prompt):
        return Rendered(_checked_ids(prompt, len(tokenizer)))  # type: ignore[arg-type]
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
    """Chat messages through the model's chat template, up to where its answer begins.

    Args:
        tokenizer: mlx-lm's `TokenizerWrapper`.
        tools: definitions of functions, as the template expects them.
        thinking: as `read`. options: further variables of the template.

    Raises:
        PromptError: the model has no chat template, or it refuses these messages.
    """
    text_of = partial(written, tokenizer, tools=tools, thinking=thinking, options=options)
    text = text_of(messages)
    others = [*_heads(messages, shared=bool(tools)), *_ends(messages)]
    return _marked(tokenizer, text, _shared_characters(text, others, text_of))


def written(
    tokenizer: Any,
    messages: Sequence[Message],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    thinking: bool | None = None,
    options: Mapping[str, Any] | None = None,
    opened: bool = True,
) -> str:
    """The text that `render` makes tokens of; opened: with the beginning of an answer behind it."""
    if not tokenizer.has_chat_template:
        raise PromptError("this model has no chat template for messages; give the prompt as a text")
    wish = dict(options or {})
    if tools:
        wish["tools"] = list(tools)
    if thinking is not None:
        wish["enable_thinking"] = thinking
    try:
        return str(tokenizer.apply_chat_template(list(messages), add_generation_prompt=opened, tokenize=False, **wish))
    except Exception as error:  # templates raise errors of their own, and trip over messages that they do not expect
        raise PromptError(f"the model's chat template refuses these messages: {error}") from error


def count_tokens(tokenizer: Any, text: str) -> int:
    """The tokens of a text alone, without those that some models have put before it.

    Raises:
        PromptError: it is no Unicode text.
    """
    return len(_tokenised(_ids, tokenizer, text))


def _heads(messages: Sequence[Message], *, shared: bool) -> list[list[list[Message]]]:
    """What other conversations under the same head would be, if it has anything that is worth keeping."""
    count = next((i for i, message in enumerate(messages) if message.get("role") not in SYSTEM), len(messages))
    if not (count or shared):
        return []
    return [[[*messages[:count], {"role": "user", "content": probe}] for probe in PROBES]]


def _ends(messages: Sequence[Message]) -> list[list[list[Message]]]:
    """The conversation up to its last user message, and up to its last message."""
    users = [i for i, message in enumerate(messages, start=1) if message.get("role") == "user"]
    return [[list(messages[:end])] for end in sorted({*users[-1:], len(messages)})]


def _shared_characters(text: str, others: list[list[list[Message]]], text_of: Callable[..., str]) -> list[int]:
    """How many characters a prompt's text shares with all of each group of others, which are not to be answered."""
    found = []
    for group in others:
        with suppress(Exception):  # a template that cannot do without what is left out: no mark
            found.append(_shared([text, *(text_of(other, opened=False) for other in group)]))
    return found


def _shared(several: list[Any]) -> int:
    return len(commonprefix(several))  # noqa: RUF071 - of characters or tokens; nothing here is a path


def _marked(tokenizer: Any, text: str, ends: list[int]) -> Rendered:
    """A rendered text's tokens, and how many of them lie within its first `ends` characters."""
    if getattr(tokenizer, "is_fast", False):
        tokens, stops = _tokenised(_with_offsets, tokenizer, text)
        counts = {bisect_right(stops, end) for end in ends}
    else:
        tokens = _tokenised(_ids, tokenizer, text)
        counts = {_shared([tokens, _ids(tokenizer, text[:end])]) for end in ends}
    return Rendered(_checked(tokens), tuple(sorted(count for count in counts if 0 < count < len(tokens))))


def _with_offsets(tokenizer: Any, text: str) -> tuple[list[int], list[int]]:
    """Token ids, and where in the text each token ends."""
    hugging_face = tokenizer._tokenizer  # the wrapper passes on names, and a call has none
    found = hugging_face(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return list(found["input_ids"]), [stop for _, stop in found["offset_mapping"]]


def _ids(tokenizer: Any, text: str, **options: Any) -> list[int]:
    return list(tokenizer.encode(text, verbose=False, **{"add_special_tokens": False, **options}))


def _tokenised(how: Callable[..., T], *rest: Any, **options: Any) -> T:
    try:
        return how(*rest, **options)
    except Exception as error:  # half a surrogate pair, which each tokenizer refuses in its own way
        text = next((one for one in rest if isinstance(one, str)), "")
        torn = next((i for i, one in enumerate(text) if "\ud800" <= one <= "\udfff"), None)
        why = error if torn is None else f"its character {torn + 1} is half a surrogate pair"
        raise PromptError(f"the prompt cannot be tokenised: {why}; expected Unicode text") from error


def _checked(tokens: list[int]) -> list[int]:
    if not tokens:
        raise PromptError("the prompt has no tokens; expected at least one")
    return tokens


def _checked_ids(ids: Sequence[int], vocabulary: int) -> list[int]:
    if bad := [i for i in ids if not 0 <= i < vocabulary]:
        raise PromptError(f"token id {bad[0]} is outside the vocabulary; expected 0 to {vocabulary - 1}")
    return list(ids)
