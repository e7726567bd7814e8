"""Which columns hold the gold of a job, how are answers compared with it, and may the request see it? Pure.

Gold is the right answer to a row, as people gave it. It is compared with the model's answer, so the model must not see
it: a column that the request names, or could reach, is refused.
"""

import math
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from pipeline.job import templates

NonEmpty = Annotated[str, Field(min_length=1)]


class _Part(BaseModel):
    """A part of a job file, with the rules of model.Section, which imports this module."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Within(_Part):
    """How far a number may be from gold and still be right, inclusive: `abs`, or `rel` as a share of gold."""

    abs: float | None = None
    rel: float | None = None


def _is_match(value: Any) -> Any:
    """Return the value. Raises ValueError if it is no way to compare."""
    if isinstance(value, Within) or value in ("exact", "casefold", "set"):
        return value
    distances = [d for d in value.values() if d is not None] if isinstance(value, dict) else []
    known = isinstance(value, dict) and value.keys() <= {"abs", "rel"} and len(distances) == 1
    if known and type(distances[0]) in (int, float) and math.isfinite(distances[0]) and distances[0] >= 0:
        return value
    raise ValueError("must be exact, casefold, set, {abs: NUMBER} or {rel: NUMBER}")


#: exact: equal; casefold: equal apart from case and outer blanks; set: lists with the same values in any order.
Match = Annotated[Literal["exact", "casefold", "set"] | Within, BeforeValidator(_is_match)]


def _null_as_text(value: Any) -> Any:
    """Return "null" for None: YAML reads the word null in `empty: null` as None."""
    return "null" if value is None else value


class Gold(_Part):
    """Where the right answers stand, and how the model's answers are compared with them.

    columns: column of the output to the column that holds its gold; empty if `reviews` is set. path: a file of its own
    with these columns and the job's key; None: the source has them. reviews: whether gold is what people said of the
    answers with the command `review`. match: by column of the output; `exact` where nothing is said.
    empty: what an empty gold value means: the row has no gold there ("unknown"), or the answer must be null ("null").
    random: whether the rows with gold are a random sample; chosen rows say nothing about the other rows.
    """

    columns: dict[NonEmpty, NonEmpty] = {}
    path: NonEmpty | None = None
    reviews: bool = False
    match: dict[str, Match] = {}
    empty: Annotated[Literal["unknown", "null"], BeforeValidator(_null_as_text)] = "unknown"
    random: bool = True

    @field_validator("match")
    @classmethod
    def _matches_its_columns(cls, match: dict[str, Match], info: ValidationInfo) -> dict[str, Match]:
        columns = info.data.get("columns") or match
        for name in match:
            if name not in columns:
                raise ValueError(f"names {name!r}, which has no gold; gold.columns has {', '.join(columns)}")
        return match

    @model_validator(mode="after")
    def _stands_in_one_place(self) -> "Gold":
        if self.reviews and (self.columns or self.path is not None or self.empty != "unknown"):
            raise ValueError("takes its values from reviews, so columns, path and empty cannot be given as well")
        if not self.reviews and not self.columns:
            raise ValueError("names no columns; write {columns: {COLUMN OF THE OUTPUT: COLUMN}}, or reviews")
        return self

    def match_of(self, column: str) -> Match:
        """Return how the values of an output column are compared."""
        return self.match.get(column, "exact")


def of_reviews(gold: Any) -> Any:
    """Return the value of the section; `gold: reviews` is short for `gold: {reviews: true}`."""
    return {"reviews": True} if gold == "reviews" else gold


def refuse_seen(gold: Gold, templates_of: Mapping[str, str], columns_of: Mapping[str, Collection[str]]) -> None:
    """Raise ValueError if the request names a column of gold in the source, or uses `row` so that it could reach it.

    templates_of: the templates of the request by field; columns_of: the columns that other fields name.
    """
    if gold.reviews:
        return
    names = {field: templates.names(text) for field, text in templates_of.items()}
    named = {**columns_of, **{field: each.columns for field, each in names.items()}}
    for column in gold.columns.values():
        for field, columns in named.items():
            if column in columns:
                raise ValueError(
                    f"column {column!r} is used by {field}, so the model would see the right answer; take it out of "
                    "the request, or give the gold in another column"
                )
    for field, each in names.items():
        if each.all_columns:
            raise ValueError(
                f"{field} uses row as a whole, so that the model could see column {next(iter(gold.columns.values()))!r}"
                '; write row["NAME"] for each column that the request needs'
            )
