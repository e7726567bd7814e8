"""Read the settings of a driver from environment variables. Edge: environment variables."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from pipeline.errors import InputError


def _variable(name: str, values: str, *, ge: float | None = None, gt: float | None = None) -> Any:
    """Describe a setting. name: of its environment variable; values: the numbers it takes, for messages."""
    return Field(validation_alias=name, description=values, ge=ge, gt=gt)


class Settings(BaseModel):
    """How long a driver waits, in seconds, and how much it may send and spend."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_by_name=True, allow_inf_nan=False)

    #: the most time for one HTTP call
    timeout: Annotated[float, _variable("BATCH_TIMEOUT_SECONDS", "seconds, 1 or more", ge=1)] = 600.0
    #: how long an accepted batch may be missing from the API's listing
    grace: Annotated[float, _variable("BATCH_GRACE_SECONDS", "seconds, 0 or more", ge=0)] = 300.0
    lease: Annotated[float, _variable("BATCH_LEASE_SECONDS", "seconds, 1 or more", ge=1)] = 120.0
    #: between polls of a batch; None: as the API says, else a time that grows to 60
    poll: Annotated[float | None, _variable("BATCH_POLL_SECONDS", "seconds, 0 or more", ge=0)] = None
    #: the most requests at the API at a time, for all jobs of the database together
    max_in_flight: Annotated[int, _variable("BATCH_MAX_IN_FLIGHT", "requests, 1 or more", ge=1)] = 200_000
    #: rows whose calls of tools one driver makes side by side; after a crash, the calls of so many rows are made again
    tool_rows: Annotated[int, _variable("BATCH_TOOL_ROWS", "rows, 1 or more", ge=1)] = 1
    #: US dollars that all jobs of the database may cost in a calendar month (UTC); None: no limit
    monthly_budget: Annotated[float | None, _variable("BATCH_MONTHLY_BUDGET_USD", "US dollars, more than 0", gt=0)] = (
        None
    )

    @classmethod
    def from_environment(cls, *, poll_seconds: float | None = None, grace: float | None = None) -> "Settings":
        """Return the settings that the environment variables give; an empty variable counts as absent.

        poll_seconds: used instead of its variable; None: use the variable. grace: used if its variable is absent; None:
        use the default. Raises InputError for a variable that is not such a number.
        """
        given: dict[str, Any] = {} if poll_seconds is None else {"BATCH_POLL_SECONDS": poll_seconds}
        try:
            found = _FromEnvironment(**given).model_dump(exclude_unset=True)
        except ValidationError as exc:
            raise InputError(_refusal(exc)) from None
        return cls(**({} if grace is None else {"grace": grace}) | found)

    def warning(self) -> str | None:
        """Return what is unsafe about these settings at the API, as a sentence; None if nothing is."""
        if self.grace >= self.lease:
            return None
        return (
            f"BATCH_GRACE_SECONDS={self.grace:g} is less than BATCH_LEASE_SECONDS={self.lease:g}: a driver that has "
            "lost its lease may still be sending when the API's listing is taken for complete, and a batch may be paid "
            f"twice; set BATCH_GRACE_SECONDS to {self.lease:g} or more"
        )


class _FromEnvironment(Settings, BaseSettings):
    """The same settings, which take their values from the environment when an object is made."""

    # if names counted, a variable `timeout` or `lease` of another program would be read as one of ours
    model_config = SettingsConfigDict(
        case_sensitive=True, env_ignore_empty=True, validate_by_name=False, validate_by_alias=True
    )


def _refusal(exc: ValidationError) -> str:
    """Return a sentence about the first variable that cannot be used: its name, its text, and what it takes."""
    wrong = exc.errors()[0]
    fields = Settings.model_fields.values()
    values = next(field.description for field in fields if field.validation_alias == wrong["loc"][0])
    return f"{wrong['loc'][0]}={wrong['input']!r}: this must be a number of {values}"
