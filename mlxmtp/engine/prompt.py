"""From a caller's prompt to the token ids that the model reads."""

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from mlxmtp.engine.control_tokens import Escape, escape_for
from mlxmtp.engine.strict_templates import SYSTEM_ROLES, simpler_forms
from mlxmtp.errors import PromptError, TemplateLimitError
from mlxmtp.prefixes import common_length

T = TypeVar("T")
Message = Mapping[str, Any]
Prompt = str | Sequence[Message] | Sequence[int]

PROBES = ("a", "b")
"""Messages of two other users: the prompts of all three share exactly the system prompt and the tools."""
MIN_TOOLS_CHARACTERS = 400
"""Characters before the system prompt's text for which a boundary is noted there. Fewer are the opening of a template
that puts the tools after the text."""
ANCHOR = "\n"
"""Stands before a piece while it is tokenised: a tokenizer that begins each text with a space puts the space there."""


@dataclass(frozen=True)
class Rendered:
    """A prompt as the model reads it.

    Args:
        tokens: its token ids.
        boundaries: ascending token counts after which other prompts are likely to branch: after the tools, where they
            come before the system prompt's text, after the system prompt with its tools, after the last user message,
            and after the last message.
        conversation: the ids are the tokenizer's for a text that the chat template made.
    """

    tokens: list[int]
    boundaries: tuple[int, ...] = ()
    conversation: bool = False


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
        return Rendered(list(prompt))  # type: ignore[arg-type]
    if not all(isinstance(item, Mapping) for item in prompt):
        raise PromptError("the prompt mixes kinds; expected a text, a list of chat messages or a list of token ids")
    messages: Sequence[Message] = prompt  # type: ignore[assignment]
    for i, message in enumerate(messages, start=1):
        if not isinstance(message.get("role"), str) or not {"content", "tool_calls"} & message.keys():
            found = ", ".join(message) or "nothing"
            raise PromptError(f"message {i} of the prompt has {found}; expected a role and content, or tool calls")
    return render(tokenizer, messages, thinking=thinking)


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
    rendered = _render(tokenizer, messages, text_of, has_tools=bool(tools))
    escape = escape_for(tokenizer, rendered.tokens, messages, tools, options)
    if escape is None:
        return rendered
    text_of = partial(text_of, tools=escape.everywhere(tools), options=escape.everywhere(options))
    return _render(tokenizer, escape.messages(messages), text_of, has_tools=bool(tools), escape=escape)


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
    apply = partial(
        tokenizer.apply_chat_template, add_generation_prompt=add_generation_prompt, tokenize=False, **variables
    )
    try:
        return str(apply(list(messages)))
    except TemplateLimitError:
        raise
    except Exception as error:  # templates raise errors of their own, and trip over messages that they do not expect
        for form in simpler_forms(messages):
            with suppress(Exception):
                return str(apply(form))
        raise PromptError(f"the model's chat template refuses these messages: {error}") from error


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


def _other_systems(messages: Sequence[Message], *, has_tools: bool) -> list[list[list[Message]]]:
    """Two conversations with the same tools and other system prompts, as one group; none without both."""
    if not (has_tools and messages and messages[0].get("role") in SYSTEM_ROLES):
        return []
    return [[[{**messages[0], "content": probe}, {"role": "user", "content": probe}] for probe in PROBES]]


def _earlier_ends(messages: Sequence[Message]) -> list[list[list[Message]]]:
    """The conversation up to its last user message, and up to its last message; each a group."""
    users = [i for i, message in enumerate(messages, start=1) if message.get("role") == "user"]
    return [[list(messages[:end])] for end in sorted({*users[-1:], len(messages)})]


def _shared_characters(text: str, groups: list[list[list[Message]]], text_of: Callable[..., str]) -> list[int]:
    """For each group, the number of characters that `text` shares with all its conversations, left unanswered."""
    lengths = []
    for group in groups:
        try:
            texts = [text_of(other, add_generation_prompt=False) for other in group]
        except TemplateLimitError:
            raise
        except PromptError:  # a template that needs the messages left out: no boundary
            continue
        lengths.append(common_length(text, *texts))
    return lengths


def _render(
    tokenizer: Any,
    messages: Sequence[Message],
    text_of: Callable[..., str],
    *,
    has_tools: bool,
    escape: Escape | None = None,
) -> Rendered:
    """The tokens and boundaries of messages; the text is cut at each mark of `escape`, which is no part of it."""
    text = text_of(messages)
    others = [*_other_conversations(messages, has_tools=has_tools), *_earlier_ends(messages)]
    tools = _shared_characters(text, _other_systems(messages, has_tools=has_tools), text_of)
    ends = [end for end in tools if end >= MIN_TOOLS_CHARACTERS] + _shared_characters(text, others, text_of)
    return _with_boundaries(tokenizer, text, ends, escape)


def _with_boundaries(tokenizer: Any, text: str, ends: list[int], escape: Escape | None) -> Rendered:
    """The tokens of a rendered text, with a boundary after the tokens within its first `end` characters, for each."""
    tokens, token_ends = _tokenise(_ids_with_ends, tokenizer, text, escape)
    if getattr(tokenizer, "is_fast", False):
        counts = {bisect_right(token_ends, end) for end in ends}
    else:
        counts = {common_length(tokens, _ids_with_ends(tokenizer, text[:end], escape)[0]) for end in ends}
    return Rendered(_not_empty(tokens), tuple(sorted(count for count in counts if 0 < count < len(tokens))), True)


def _ids_with_ends(tokenizer: Any, text: str, escape: Escape | None) -> tuple[list[int], list[int]]:
    """Token ids, and the character at which each token ends, which only fast tokenizers know."""
    ids: list[int] = []
    ends: list[int] = []
    for start, piece in escape.split(text) if escape else [(0, text)]:
        more, more_ends = _continue(tokenizer, piece) if start else _encode(tokenizer, piece)
        ids += more
        ends += [start + end for end in more_ends]
    return ids, ends


def _continue(tokenizer: Any, piece: str) -> tuple[list[int], list[int]]:
    """As `_encode`, for a piece that begins within a text."""
    anchor, _ = _encode(tokenizer, ANCHOR)
    ids, ends = _encode(tokenizer, ANCHOR + piece)
    count = len(anchor)
    if ids[:count] != anchor or any(end > len(ANCHOR) for end in ends[:count]):  # the anchor is joined to the piece
        return _encode(tokenizer, piece)
    return ids[count:], [end - len(ANCHOR) for end in ends[count:]]


def _encode(tokenizer: Any, text: str) -> tuple[list[int], list[int]]:
    """Token ids of a text, and where a fast tokenizer says it, the character at which each token ends."""
    if not getattr(tokenizer, "is_fast", False):
        return _ids(tokenizer, text), []
    hugging_face = tokenizer._tokenizer  # the wrapper forwards attributes, not calls
    encoding = hugging_face(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return encoding["input_ids"], [end for _, end in encoding["offset_mapping"]]


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
