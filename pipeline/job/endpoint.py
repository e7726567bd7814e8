"""Which endpoint of the API does a job use? What its section `api` says, as a key by which jobs are grouped. Pure."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Endpoint(NamedTuple):
    """The endpoint of the API that a job uses. Values that begin with `$` name environment variables.

    client: which of the SDK's clients. base_url: None: as the SDK finds it. headers: names and values, sorted; they
    are sent with every call. timeout: seconds for one call; None: that of the settings.
    """

    client: str = "default"
    base_url: str | None = None
    headers: tuple[tuple[str, str], ...] = ()
    timeout: float | None = None

    @classmethod
    def of(cls, section: Mapping[str, Any]) -> "Endpoint":
        """Return the endpoint that a section `api` names; fields that an older version did not store have defaults."""
        headers = section.get("headers") or {}
        return cls(
            str(section.get("client", "default")),
            section.get("base_url"),
            tuple(sorted((str(name), str(value)) for name, value in headers.items())),
            section.get("timeout"),
        )


DEFAULT = Endpoint()  #: that of a job without a section `api`
