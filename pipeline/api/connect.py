"""Which of the SDK's clients calls the API, and with which credentials? The SDK reads the environment. Edge: HTTP."""

import os
import re
from typing import Any

import anthropic
import httpx2

from pipeline.api.reach import Reach
from pipeline.errors import InputError

#: The SDK's clients that have the Message Batches API, by their names in a job file.
CLIENTS = {"default": "Anthropic", "aws": "AnthropicAWS", "google": "AnthropicGoogleCloud"}
EXTRAS = {"aws": "batch-pipeline[aws]", "google": "batch-pipeline[google]"}
BODY_DIGEST = "x-amz-content-sha256"  # a header that gives AWS's signature the digest of a body


class SigningAWS(anthropic.AnthropicAWS):
    """The SDK's client for AWS, but it signs a body by the digest in a header, without reading the body.

    The SDK reads the whole body to sign it. That would hold a batch in memory, and would release its last bytes before
    the first one is sent.
    """

    def _prepare_request(self, request: httpx2.Request) -> None:
        if not self._use_sigv4 or BODY_DIGEST not in request.headers:
            super()._prepare_request(request)
            return
        from anthropic.lib.aws._auth import get_auth_headers

        signed = get_auth_headers(
            method=request.method,
            url=str(request.url),
            headers=request.headers,
            aws_access_key=self.aws_access_key,
            aws_secret_key=self.aws_secret_key,
            aws_session_token=self.aws_session_token,
            region=self.aws_region,
            profile=self.aws_profile,
            data=None,
            service_name="aws-external-anthropic",
        )
        request.headers.update(signed)


def make_client(reach: Reach, *, prefix: str = "") -> Any:
    """Return one of the SDK's clients. prefix: `Async` for its async twin. Raises InputError if it cannot be made."""
    options: dict[str, Any] = {
        "base_url": reach.base_url,
        "timeout": httpx2.Timeout(reach.timeout, connect=min(reach.timeout, 10.0)),
        "default_headers": dict(reach.headers) or None,
        "max_retries": 0,  # the SDK would wait for the whole retry-after, even hours; our steps look again later
    }
    if reach.client == "default":
        options["api_key"] = reach.api_key
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        path = os.environ.get(name)
        if path and not os.path.exists(path):
            raise InputError(f"{name}={path}: there is no such file or folder; correct the variable, or unset it")
    kind = SigningAWS if (reach.client, prefix) == ("aws", "") else getattr(anthropic, prefix + CLIENTS[reach.client])
    try:
        return kind(**options)
    except Exception as exc:
        problem = credentials_problem(exc, reach.client)
        if problem is None and not isinstance(exc, anthropic.AnthropicError | ValueError):
            raise
        raise InputError(problem or f"api.client {reach.client}: the client cannot be made: {_line(exc)}") from exc


def credentials_problem(exc: BaseException, client: str = "") -> str | None:
    """Return a sentence about missing or wrong credentials; None if the error is about something else.

    client: the job file's name of the SDK's client, for the message. The SDK meets most of these errors in the first
    call, and passes on those of the libraries that it uses.
    """
    where = f"api.client {client}: " if client else ""
    library = _missing_library(exc)
    if library is not None:  # one that a plain installation does not have
        extra = EXTRAS.get(client) or EXTRAS["aws" if library.startswith("boto") else "google"]
        return f"{where}the library {library} is not installed: pip install '{extra}'"
    if isinstance(exc, TypeError) and "authentication" in str(exc):
        return "no API key: set ANTHROPIC_API_KEY, or add --emulator to try it without one"
    of_library = type(exc).__module__.partition(".")[0] in ("google", "botocore", "boto3")
    missing = isinstance(exc, RuntimeError) and "credentials" in str(exc)
    of_sdk = isinstance(exc, anthropic.AnthropicError) and not isinstance(exc, anthropic.APIError)
    if isinstance(exc, anthropic.CredentialsError) or of_library or missing or of_sdk:
        return f"{where}no credentials: {_line(exc)}"
    return None


def _missing_library(exc: BaseException) -> str | None:
    """Return the name of the library that is not installed; None for any other error."""
    if isinstance(exc, ImportError):
        return (exc.name or "").partition(".")[0] or _line(exc)
    if type(exc).__name__ == "MissingDependencyError":  # the SDK's own, which it does not export
        named = re.search(r"`([^`]+)`", str(exc))
        return named[1] if named else _line(exc)
    return None


def _line(exc: BaseException) -> str:
    """Return an error's text in one line."""
    return " ".join(str(exc).split()) or type(exc).__name__
