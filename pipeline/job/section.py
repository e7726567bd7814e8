"""What do all sections of a job have in common? Pure."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

NonEmpty = Annotated[str, Field(min_length=1)]


class Section(BaseModel):
    """A section of a job file. Unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, serialize_by_alias=True, validate_by_name=True)


def without_value(problem: str) -> PydanticCustomError:
    """Return the error for a value that no message shows, because it is missing, or may hold a secret."""
    return PydanticCustomError("without_value", "{problem}", {"problem": problem})


def as_list(value: Any) -> Any:
    """Return a list with the text if the value is a text, else the value unchanged."""
    return [value] if isinstance(value, str) else value
