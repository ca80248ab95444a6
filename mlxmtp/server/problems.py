"""What goes wrong with a request, in no protocol's shape yet."""

from __future__ import annotations

from mlxmtp.errors import MlxmtpError


class ApiError(MlxmtpError):
    """A request cannot be answered.

    Args:
        status: of HTTP. code: what programs tell it by. param: the field that it is about.
        retry_after: seconds after which the client may try again.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        code: str = "invalid_request",
        param: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.retry_after = retry_after

    @property
    def kind(self) -> str:
        """The class of the error, named as OpenAI and Anthropic both do."""
        kinds = {401: "authentication_error", 404: "not_found_error", 413: "request_too_large"}
        return kinds.get(self.status, "invalid_request_error" if self.status < 500 else "api_error")


def too_long(tokens: int, context: int, *, at_least: bool = False) -> ApiError:
    """The prompt leaves no room for an answer; agents look for the code, and for both numbers."""
    more = " or more" if at_least else ""
    return ApiError(
        f"This model's maximum context length is {context} tokens. "
        f"However, your messages resulted in {tokens} tokens{more}. "
        "Please reduce the length of the messages. (prompt is too long: "
        f"{tokens} tokens > {context - 1} maximum)",
        code="context_length_exceeded",
        param="messages",
    )


def busy(waiting: int) -> ApiError:
    return ApiError(
        f"the queue is full ({waiting} requests wait); try again later, or start the server with a longer --queue",
        status=503,
        code="queue_full",
        retry_after=2,
    )
