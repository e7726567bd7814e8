"""When is a row sent again, and with which change? The section `retry` of a job. Pure."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipeline.job.section import NonEmpty, Section

RetryableError = Literal[
    "expired",
    "api_error",
    "overloaded_error",
    "timeout_error",
    "rate_limit_error",
    "conflict_error",
    "invalid_request_error",
    "not_found_error",
    "authentication_error",
    "permission_error",
    "billing_error",
]


class LongerAnswer(Section):
    """The change that lets the next answer be longer.

    max_tokens: the factor for the request's max_tokens, as `2x`; the model's own limit still holds.
    """

    max_tokens: Annotated[str, Field(pattern=r"^[1-9][0-9]?(\.[0-9]+)?x$")]

    @model_validator(mode="after")
    def _is_longer(self) -> Self:
        if self.factor <= 1:
            raise ValueError("max_tokens must be greater than 1x, for example 2x")
        return self

    @property
    def factor(self) -> float:
        """The number before the x."""
        return float(self.max_tokens[:-1])


class OtherModel(Section):
    """The change to another model. model: the one that is asked next; several: a chain, asked one after the other."""

    model: NonEmpty | Annotated[list[NonEmpty], Field(min_length=1)]

    @property
    def models(self) -> list[str]:
        """The models of the chain."""
        return [self.model] if isinstance(self.model, str) else self.model

    @model_validator(mode="after")
    def _differ(self) -> Self:
        repeated = [model for i, model in enumerate(self.models) if model in self.models[:i]]
        if repeated:
            raise ValueError(f"model names {repeated[0]} more than once")
        return self

    def after(self, model: str) -> str | None:
        """Return the model that is asked after this one; None if this is the last one of the chain."""
        place = self.models.index(model) + 1 if model in self.models else 0
        return self.models[place] if place < len(self.models) else None


class AskAgain(Section):
    """The change that asks a second question. reask: whether the answer and its problem are sent as two more turns."""

    reask: bool


class GoOn(Section):
    """The answer to a pause. continue: whether the answer is sent back, so that the model goes on where it paused."""

    continue_: bool = Field(alias="continue")


class Change(Section):
    """By outcome, the change with which a row is sent again. None, the default: no change, as each costs money.

    errored, expired: apply once the row has been sent unchanged as often as `retry` allows. paused: of an answer with
    stop_reason pause_turn, which goes on in a further round, up to `rounds.max`.
    """

    truncated: LongerAnswer | None = None
    refused: OtherModel | None = None
    unparsable: AskAgain | None = None
    errored: OtherModel | None = None
    expired: OtherModel | None = None
    paused: GoOn | None = None

    @property
    def continues_pauses(self) -> bool:
        """Whether a paused answer goes on in a further round."""
        return self.paused is not None and self.paused.continue_

    @property
    def other_models(self) -> list[str]:
        """All models that a change may ask, each once."""
        chains = [each.models for each in (self.refused, self.errored, self.expired) if each is not None]
        return list(dict.fromkeys(model for chain in chains for model in chain))

    def of(self, outcome: str | None) -> LongerAnswer | OtherModel | AskAgain | None:
        """Return the change for rows with this outcome; None if they are not sent again with a change."""
        if outcome == "paused" or outcome not in Change.model_fields:  # a pause is no outcome
            return None
        change: LongerAnswer | OtherModel | AskAgain | None = getattr(self, outcome)
        return None if isinstance(change, AskAgain) and not change.reask else change


class Retry(Section):
    """Which rows are sent again without a person's decision, and how often.

    max_attempts: of one row, with the first one. errors: errors of the API after which a row is sent again unchanged.
    change: outcomes after which a row is sent again with a change.
    """

    max_attempts: Annotated[int, Field(ge=1, le=100)] = 3
    errors: list[RetryableError] = ["expired", "api_error", "overloaded_error", "timeout_error", "rate_limit_error"]
    change: Change = Change()
