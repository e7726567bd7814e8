"""Which account does a client of the API belong to? Pure."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Account:
    """The owner of the batches that a client sees. organization: a salted digest of the key if the API names none."""

    base_url: str
    organization: str
    workspace: str
    emulated: bool
