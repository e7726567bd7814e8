"""The exceptions of the emulator: EmulatorError for the person who runs it, ApiError for answers to API clients."""

from dataclasses import dataclass
from typing import Any

ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "request_too_large",
    422: "invalid_request_error",
    429: "rate_limit_error",
    500: "api_error",
    502: "api_error",
    503: "api_error",
    504: "timeout_error",
    529: "overloaded_error",
}


class EmulatorError(Exception):
    """The emulator cannot start, or its options are wrong. The text is one sentence that says what to do."""


class ApiError(Exception):
    """A call is answered with an error of the API.

    status: the HTTP status. error_type: `error.type`; None: the type that belongs to the status.
    details: `error.details`; None: the answer has no such field. headers: further HTTP headers of the answer.
    html: answer with the HTML page of a proxy instead of the API's JSON.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        error_type: str | None = None,
        details: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
        html: bool = False,
    ) -> None:
        super().__init__(status, message)
        self.status, self.message = status, message
        self.error_type = error_type or ERROR_TYPES.get(status, "api_error")
        self.details, self.headers, self.html = details, headers or {}, html

    def __str__(self) -> str:
        return f"{self.status} {self.error_type}: {self.message}"


@dataclass(frozen=True)
class Problem:
    """The reason why the params of a request are refused: `error.type` and `error.message` of the answer."""

    message: str
    type: str = "invalid_request_error"


class Dropped(Exception):
    """The server must close the connection without an answer."""


class ConnectionCut(Exception):
    """The server must break the connection in the middle of an answer.

    reset: send a TCP reset; otherwise close the connection cleanly.
    """

    def __init__(self, *, reset: bool) -> None:
        super().__init__(reset)
        self.reset = reset
