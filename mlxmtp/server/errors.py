"""Errors of requests, independent of the protocol: an adapter gives them their JSON shape."""

from __future__ import annotations

from mlxmtp.errors import MlxmtpError

REQUEST_TIMEOUT = 408
"""The only status below 500 whose request may succeed when it is sent again."""
OUT_OF_MEMORY = "out_of_memory"
"""The code of an error with a status of 500 whose request fails again: it needs as much memory as before."""


class ApiError(MlxmtpError):
    """A request cannot be answered.

    Args:
        status: HTTP status code.
        code: identifies the error to programs.
        param: path of the wrong field in the body.
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
    def headers(self) -> dict[str, str]:
        """The headers of its response. They tell SDKs whether to send the same request again."""
        if self.retry_after:
            return {"retry-after": str(self.retry_after)}
        may_succeed = self.status == REQUEST_TIMEOUT or (self.status >= 500 and self.code != OUT_OF_MEMORY)
        return {} if may_succeed else {"x-should-retry": "false"}

    @property
    def error_type(self) -> str:
        """The class of the error; OpenAI and Anthropic use the same names."""
        types = {
            401: "authentication_error",
            403: "permission_error",
            404: "not_found_error",
            413: "request_too_large",
        }
        return types.get(self.status, "invalid_request_error" if self.status < 500 else "api_error")


def context_length_exceeded(tokens: int, context: int, *, at_least: bool = False) -> ApiError:
    """The error of a prompt that leaves no room for an answer. Agents parse the code and both numbers.

    Args:
        at_least: the prompt was counted up to `tokens` only.
    """
    more = " or more" if at_least else ""
    return ApiError(
        f"This model's maximum context length is {context} tokens. "
        f"However, your messages resulted in {tokens} tokens{more}. "
        "Please reduce the length of the messages. (prompt is too long: "
        f"{tokens} tokens > {context - 1} maximum)",
        code="context_length_exceeded",
        param="messages",
    )


def queue_full(waiting: int) -> ApiError:
    """The error of a request for which the queue has no room."""
    return ApiError(
        f"the queue is full ({waiting} requests wait); try again later, or start the server with a longer --queue",
        status=503,
        code="queue_full",
        retry_after=2,
    )


def internal_error(error: Exception) -> ApiError:
    """The error of a bug in this server."""
    return ApiError(f"{error!r}; this should not be, please report it", status=500, code="internal_error")
