"""Is a value of an answer right, by the gold and the way in which the job compares them? Pure."""

from collections.abc import Callable
from enum import StrEnum
from typing import Any

import orjson

from pipeline.job.gold import Match, Within
from pipeline.text import folded

SLACK = 1e-9  # for the rounding of floats


class Mark:
    """Stands for a value that is not there."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __repr__(self) -> str:
        return self._name


FAILED = Mark("(failed)")  #: the value of an answer that failed
ANOTHER = Mark("(another)")  #: gold of which is known only that it is not the answer
UNKNOWN = Mark("(unknown)")  #: gold of which nothing is known for this answer


class Verdict(StrEnum):
    """What a value of an answer is."""

    RIGHT = "right"
    WRONG = "wrong"
    MISSING = "missing"  #: null, and gold is not
    INVENTED = "invented"  #: not null, and gold is null

    __hash__ = str.__hash__  # Enum.__hash__ is slow Python code, and every value is counted


def verdict(equal: Callable[[Any, Any], bool], answer: Any, gold: Any) -> Verdict:
    """Return what a value of an answer is. equal: see `comparer`. answer: FAILED if the answer failed.

    gold: None if the answer must be null; ANOTHER, but not UNKNOWN.
    """
    if answer is FAILED or gold is ANOTHER:
        return Verdict.WRONG
    if answer is None:
        return Verdict.RIGHT if gold is None else Verdict.MISSING
    if gold is None:
        return Verdict.INVENTED
    return Verdict.RIGHT if equal(answer, gold) else Verdict.WRONG


def comparer(kind: str, match: Match) -> Callable[[Any, Any], bool]:
    """Return the function that compares an answer with gold; neither is None. kind: see sink.columns.KINDS."""
    if isinstance(match, Within):
        return _within(match)
    if match == "casefold":
        return lambda answer, gold: folded(str(answer)) == folded(str(gold))
    if kind == "json":
        return _same_set if match == "set" else _same_list
    return lambda answer, gold: bool(answer == gold)


def _within(match: Within) -> Callable[[Any, Any], bool]:
    most, share = match.abs or 0.0, match.rel or 0.0
    return lambda answer, gold: bool(abs(answer - gold) <= most + share * abs(gold) + SLACK)


def _same_list(answer: Any, gold: Any) -> bool:
    return bool(as_list(answer) == as_list(gold))


def _same_set(answer: Any, gold: Any) -> bool:
    return values_in(answer) == values_in(gold)


def as_list(value: Any) -> Any:
    """Return the list in a JSON text; anything else is returned unchanged."""
    try:
        return orjson.loads(value) if isinstance(value, str) else value
    except orjson.JSONDecodeError:
        return value


def values_in(value: Any) -> frozenset[Any]:
    """Return the scalars in a list, or in its JSON text; no value for None and for FAILED."""
    if value is None or value is FAILED:
        return frozenset()
    found = as_list(value)
    return frozenset(
        each for each in (found if isinstance(found, list) else [found]) if not isinstance(each, dict | list)
    )
