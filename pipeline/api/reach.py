"""How is the API reached: by which client of the SDK, at which address, with which key? Edge: environment variables."""

import os
from dataclasses import dataclass

from pipeline.errors import InputError
from pipeline.job.endpoint import Endpoint


@dataclass(frozen=True)
class Reach:
    """How to reach the API. client: which of the SDK's clients (default, aws, google).

    The SDK reads all that is None or not here from the environment: address, credentials, proxies and certificates.
    headers: names and values that are sent with every call.
    """

    client: str
    timeout: float  #: seconds for one read or write
    base_url: str | None = None
    api_key: str | None = None
    headers: tuple[tuple[str, str], ...] = ()


def reach_of(endpoint: Endpoint, timeout: float, api_key: str | None = None) -> Reach:
    """Return how to reach an endpoint, with the values of the environment variables that it names.

    timeout: in seconds, for an endpoint without one of its own. api_key: None: the SDK finds one.
    Raises InputError for a variable that is not set, or whose value is not a URL or cannot be a header.
    """
    base_url = endpoint.base_url
    if base_url is not None:
        base_url = _value("api.base_url", base_url)
        if not base_url.startswith(("http://", "https://")):
            raise InputError(
                f"api.base_url: the value of {endpoint.base_url} is not an http(s) URL; correct the variable"
            )
    headers = tuple((name, _value(f"api.headers.{name}", value)) for name, value in endpoint.headers)
    for name, value in headers:
        if not value.isascii() or not value.isprintable():
            raise InputError(f"api.headers.{name}: its value has characters that a header cannot have; correct it")
    return Reach(endpoint.client, endpoint.timeout or timeout, base_url, api_key, headers)


def _value(field: str, text: str) -> str:
    """Return a text of the job file, or the value of the environment variable that it names. Raises InputError."""
    if not text.startswith("$"):
        return text
    value = os.environ.get(text[1:])
    if not value:
        raise InputError(f"{field}: the environment variable {text[1:]} is not set; set it, or write the value itself")
    return value
