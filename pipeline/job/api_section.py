"""How is the API reached? The section `api` of a job, and the values that it may have. Pure.

A job file is shared and stored, so it holds no secrets: a value that looks like one is refused. No message shows it.
"""

import re
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from pipeline.job.endpoint import Endpoint
from pipeline.job.section import NonEmpty, Section, without_value

#: The SDK's clients that have no Message Batches API, and what there is instead.
CLIENTS_WITHOUT_BATCHES = {
    "bedrock": "Bedrock has batch inference jobs of its own (CreateModelInvocationJob)",
    "vertex": "Vertex has batch prediction jobs of its own, over BigQuery or Cloud Storage",
    "foundry": "Microsoft Foundry has no batches of Claude requests",
}


class ApiClient(Section):
    """How the API is reached. A value that begins with `$` names an environment variable.

    client: which of the SDK's clients. base_url: the address that requests go to; None: as the SDK finds it. headers:
    are sent with every call, beside those of the SDK. timeout: seconds for one call; None: BATCH_TIMEOUT_SECONDS.
    """

    client: Literal["default", "aws", "google"] = "default"
    base_url: NonEmpty | None = None
    headers: dict[NonEmpty, str] = {}
    timeout: Annotated[float, Field(ge=1, allow_inf_nan=False)] | None = None

    @property
    def endpoint(self) -> Endpoint:
        """The endpoint that these fields name."""
        return Endpoint.of(self.model_dump())

    @field_validator("base_url")
    @classmethod
    def _is_url(cls, base_url: str | None) -> str | None:
        problem = None if base_url is None else problem_of_url(base_url)
        if problem is not None:
            raise without_value(problem)
        return base_url

    @field_validator("headers")
    @classmethod
    def _hold_no_keys(cls, headers: dict[str, str]) -> dict[str, str]:
        for name, value in headers.items():
            problem = problem_of_header(name, value)
            if problem is not None:
                raise without_value(problem)
        return headers

    @field_validator("client", mode="before")
    @classmethod
    def _has_batches(cls, client: Any) -> Any:
        if client in CLIENTS_WITHOUT_BATCHES:
            raise ValueError(
                f"this client has no Message Batches API: {CLIENTS_WITHOUT_BATCHES[client]}; clients that have it are "
                "default (Anthropic), aws (Claude Platform on AWS) and google (Claude on Google Cloud)"
            )
        return client


_VARIABLE = re.compile(r"\$[A-Za-z_][A-Za-z0-9_]*")
_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")  # of a header. Source: RFC 9110, section 5.6.2
_SECRET_NAME = re.compile(r"auth|api-?key|access-?key|token|secret|passw|cookie|credential|signature", re.IGNORECASE)
_SECRET = re.compile(
    r"\bsk-[\w-]{8,}|^(bearer|basic|token)\s+\S|\bAKIA[0-9A-Z]{16}\b|\beyJ[\w-]{10,}\.|\bgh[a-z]_\w{20,}|\bxox[a-z]-\w",
    re.IGNORECASE,
)
_LONG = re.compile(r"(?=\S*[0-9])(?=\S*[A-Za-z])[A-Za-z0-9_=-]{40,}")  # random letters and digits
#: Headers that the pipeline or the SDK sets, and what to do instead.
_OURS = {
    "anthropic-beta": "request.betas sets this header; name the betas there",
    "content-type": "the SDK sets this header; remove it",
    "content-length": "the SDK sets this header; remove it",
    "host": "api.base_url sets this header; remove it",
}


def is_variable(value: str) -> bool:
    """Return whether a value names an environment variable, as `$NAME`."""
    return _VARIABLE.fullmatch(value) is not None


def looks_like_key(value: str) -> bool:
    """Return whether a value looks like a key, a token or a password."""
    return _SECRET.search(value) is not None or _LONG.search(value) is not None


def problem_of_url(url: str) -> str | None:
    """Return why this cannot be api.base_url, as the end of a sentence; None if it can."""
    if is_variable(url):
        return None
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        return "this is not an http(s) URL; write one like https://gateway.example, or $NAME of a variable with it"
    if "@" in parts.netloc or looks_like_key(url):
        return "this holds a key or a password, which would be stored with the job; write $NAME of a variable with it"
    if not valid or any(character.isspace() for character in url) or parts.query or parts.fragment:
        return f"{url!r} is not an http(s) URL; write one like https://gateway.example, or $NAME of a variable with it"
    return None


def problem_of_header(name: str, value: str) -> str | None:
    """Return why this cannot be one of api.headers, as the end of a sentence; None if it can."""
    if _NAME.fullmatch(name) is None:
        return f"{name!r} is not the name of a header"
    if name.lower() in _OURS:
        return f"{name}: {_OURS[name.lower()]}"
    if is_variable(value):
        return None
    if _SECRET_NAME.search(name) or looks_like_key(value):
        return f"{name}: its value may be a key, which would be stored with the job; write $NAME of a variable with it"
    if not value.isascii() or not value.isprintable():
        return f"{name}: its value has characters that a header cannot have"
    return None
