"""How is the API reached: by which client of the SDK, at which address, with which key? Pure."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Reach:
    """How to reach the API. client: which of the SDK's clients (default, aws, google).

    The SDK reads all that is None or not here from the environment: address, credentials, proxies and certificates.
    """

    client: str
    timeout: float  #: seconds for one read or write
    base_url: str | None = None
    api_key: str | None = None
