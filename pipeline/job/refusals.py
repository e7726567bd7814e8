"""How is a job that pydantic refuses described in sentences? Pure."""

import difflib
import functools
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, NamedTuple, get_args, get_origin

from pydantic import BaseModel, ValidationError

from pipeline.job.gold import Within
from pipeline.job.section import Section

Path = tuple[str | int, ...]  # of a field: the names and positions that lead to it


class Refusal(NamedTuple):
    """A field that was refused. field: its path; message: why, without the name of the field."""

    field: Path
    message: str

    @property
    def sentence(self) -> str:
        """The message with the name of the field."""
        return f"{dotted(self.field)}: {self.message}" if self.field else self.message


def refusals(exc: ValidationError, model: type[BaseModel]) -> Iterator[Refusal]:
    """Yield what is wrong with each field that pydantic refused. model: the one that was to be made."""
    reported: set[Path] = set()
    for error in exc.errors():
        field = field_of_error(error["loc"])
        if field in reported:  # a field of several types gets an error for each type; the first one is enough
            continue
        reported.add(field)
        message = error["msg"].removeprefix("Value error, ")
        if error["type"] == "extra_forbidden":
            message = "unknown field" + _did_you_mean(field, model)
        elif error["type"] == "missing":
            message = "this field is required"
        elif error["type"] != "without_value" and not isinstance(error["input"], dict | list):
            message = f"{message} (it is {error['input']!r})"
        yield Refusal(field, message)


def field_of_error(loc: Iterable[str | int]) -> Path:
    """Return the path of the field that a pydantic error is about. loc: of the error, which also has names of types."""
    return tuple(part for part in loc if not _is_type_name(part))


def dotted(field: Path) -> str:
    """Return the path of a field as people write it, like `request.messages.0.role`."""
    return ".".join(map(str, field))


def _is_type_name(part: str | int) -> bool:
    """Return whether a part of an error's `loc` is a type's name, rather than a field."""
    plain = ("str", "int", "float", "bool", "constrained-str", "constrained-int")
    return isinstance(part, str) and ("[" in part or part in plain or part in _sections())


@functools.cache
def _sections() -> frozenset[str]:
    """Return the names of the Section classes, which pydantic puts into the `loc` of an error in a union."""
    return frozenset([Within.__name__, *(section.__name__ for section in Section.__subclasses__())])


def _did_you_mean(field: Path, model: Any) -> str:
    """Return a hint for the end of a message: the known field that is most similar, else all known fields."""
    for part in field[:-1]:
        info = model.model_fields.get(str(part)) if _is_model(model) else None
        model = next(filter(_is_model, parts_of(info.annotation)), None) if info else None
    if not _is_model(model):
        return ""
    known = [info.alias or name for name, info in model.model_fields.items()]
    near = difflib.get_close_matches(str(field[-1]), known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f" (known: {', '.join(known)})"


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def parts_of(annotation: Any) -> list[Any]:
    """Return the alternatives of a type: `[int, str]` for `int | Annotated[str, ...]`, `[int]` for int."""
    if get_origin(annotation) is Annotated:
        return parts_of(get_args(annotation)[0])
    return [annotation, *get_args(annotation)]
