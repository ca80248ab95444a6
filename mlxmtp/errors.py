"""The errors a caller can expect. Each message says what was found, what was expected and what to do.

Everything raised on purpose derives from `MlxmtpError`; anything else that escapes is a bug.
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


class SettingsError(MlxmtpError):
    """Another program's settings file cannot be read, or not be changed without losing something in it."""


class NumericsError(MlxmtpError):
    """The model's logits are not finite, so no token can be drawn from them."""


class BackendError(MlxmtpError, ImportError):
    """MLX is not installed, or only without the library that runs it."""


def is_out_of_memory(error: Exception) -> bool:
    """MLX has no exception for it, only texts: `[malloc] Unable to allocate`, `Insufficient Memory`."""
    return _says(error, "malloc", "Insufficient Memory", "OutOfMemory", "out of memory")


def is_device_failure(error: Exception) -> bool:
    """A GPU that gave up: `[METAL] Command buffer execution failed: ...`, `cudaGraphLaunch(...) failed: ...`."""
    return _says(error, r"\[METAL\]", r"\bcuda\w+(\(.*\))? failed")


def _says(error: Exception, *marks: str) -> bool:
    return isinstance(error, RuntimeError) and any(re.search(mark, str(error)) for mark in marks)
