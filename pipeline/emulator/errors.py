"""What can go wrong: EmulatorError is for the person who runs the emulator, ApiError is an answer to an API client."""

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
    """The emulator cannot start or was set up wrongly; the text is one sentence with its remedy."""


class ApiError(Exception):
    """An error answer of the API.

    status: the HTTP status. error_type: `error.type`, by default the one that belongs to the status.
    details: `error.details` of the envelope, left out when None. html: a proxy's page instead of the JSON envelope.
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
    """Why the params of a request are refused, as `error.type` and `error.message`."""

    message: str
    type: str = "invalid_request_error"


class Dropped(Exception):
    """The connection is to be closed without a word of an answer."""


class ConnectionCut(Exception):
    """The connection breaks within an answer. reset: by RST, so that the client sees a reset and no clean end."""

    def __init__(self, *, reset: bool) -> None:
        super().__init__(reset)
        self.reset = reset
