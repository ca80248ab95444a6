"""The errors that callers can expect. Each message says what is wrong, what was expected, and what to do.

Every error raised on purpose derives from `MlxmtpError`; any other that reaches the caller is a bug.
"""

import re


class MlxmtpError(Exception):
    """Base of every error raised on purpose by this package."""


class CheckpointError(MlxmtpError):
    """A folder or Hub repo that cannot be loaded: missing, truncated, unsupported or unreachable."""


class HeadError(CheckpointError):
    """The checkpoint's MTP head is absent, of an unknown kind, or its tensors have the wrong shapes."""


class OptionError(MlxmtpError, ValueError):
    """An option is out of range or contradicts another."""


class PromptError(MlxmtpError, ValueError):
    """The prompt is empty, malformed, or longer than the model's context."""


class TemplateLimitError(PromptError):
    """The model's chat template takes too long or too much memory, or writes too much."""


class SettingsError(MlxmtpError):
    """Another program's settings file cannot be read, or cannot be changed without a loss of content."""


class NumericsError(MlxmtpError):
    """The model's logits are not finite, so no token can be drawn from them."""


class BackendError(MlxmtpError, ImportError):
    """MLX is not installed, or its backend library is missing."""


def is_out_of_memory(error: Exception) -> bool:
    """Return whether MLX ran out of memory, by the message: `[malloc] Unable to allocate`, `Insufficient Memory`."""
    return _matches(error, "malloc", "Insufficient Memory", "OutOfMemory", "out of memory")


def is_device_failure(error: Exception) -> bool:
    """Return whether a GPU failed: `[METAL] Command buffer execution failed`, `cudaGraphLaunch(...) failed`."""
    return _matches(error, r"\[METAL\]", r"\bcuda\w+(\(.*\))? failed")


def in_one_line(error: Exception) -> str:
    """Return an error's message without its line ends, or the name of its class."""
    return " ".join(str(error).split()) or type(error).__name__


def _matches(error: Exception, *patterns: str) -> bool:
    return isinstance(error, RuntimeError) and any(re.search(pattern, str(error)) for pattern in patterns)
