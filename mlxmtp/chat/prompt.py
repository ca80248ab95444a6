"""From what a caller asks to the token ids that the model reads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlxmtp.errors import PromptError

Message = Mapping[str, Any]
Prompt = str | Sequence[Message] | Sequence[int]


def encode(tokenizer: Any, prompt: Prompt, *, raw: bool, thinking: bool | None = None) -> list[int]:
    """Token ids of a text, of chat messages, or of ids as they are.

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
            return _ids(tokenizer, prompt)
        return encode(tokenizer, [{"role": "user", "content": prompt}], raw=False, thinking=thinking)
    if all(isinstance(item, int) for item in prompt):
        return _checked_ids(prompt, len(tokenizer))  # type: ignore[arg-type]
    if not all(isinstance(item, Mapping) for item in prompt):
        raise PromptError("the prompt mixes kinds; expected a text, a list of chat messages or a list of token ids")
    if not tokenizer.has_chat_template:
        raise PromptError("this model has no chat template for messages; give the prompt as a text")
    wish = {} if thinking is None else {"enable_thinking": thinking}
    try:
        text = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False, **wish)
    except Exception as error:  # templates raise errors of their own, and trip over messages that they do not expect
        raise PromptError(f"the model's chat template refuses these messages: {error}") from error
    return _ids(tokenizer, text, add_special_tokens=False)


def _ids(tokenizer: Any, text: str, **options: Any) -> list[int]:
    try:
        ids = tokenizer.encode(text, verbose=False, **options)
    except Exception as error:  # half a surrogate pair, which each tokenizer refuses in its own way
        raise PromptError(f"the prompt cannot be tokenised: {error}; expected Unicode text") from error
    if not ids:
        raise PromptError("the prompt has no tokens; expected at least one")
    return list(ids)


def _checked_ids(ids: Sequence[int], vocabulary: int) -> list[int]:
    if bad := [i for i in ids if not 0 <= i < vocabulary]:
        raise PromptError(f"token id {bad[0]} is outside the vocabulary; expected 0 to {vocabulary - 1}")
    return list(ids)


@dataclass(frozen=True)
class Rendered:
    tokens: list[int]
    marks: tuple[int, ...]


def render(tokenizer: Any, messages: Any, *, tools: Any = None, thinking: bool | None = None) -> Rendered:
    wish = {} if thinking is None else {"enable_thinking": thinking}
    try:
        text = tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=True, tokenize=False, **wish)
    except Exception as error:
        raise PromptError(f"the model's chat template refuses these messages: {error}") from error
    return Rendered(_ids(tokenizer, text, add_special_tokens=False), ())
