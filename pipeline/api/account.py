"""Who we are at the API. Pure."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Account:
    """Whose batches a client sees. organization is a salted digest of the key where the API does not say."""

    base_url: str
    organization: str
    workspace: str
    emulated: bool
