"""Which side should be the job's, and what has to be written into its file for that? Pure."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.quality.compare import Comparison, SideComparison
from pipeline.report.compare import is_better, is_worse, passes
from pipeline.report.next_command import yaml_value

#: A text of several lines that YAML can hold as a block: no control characters, no blank at the begin of line one.
_BLOCK = re.compile(r"[^\s\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff][^\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\ufeff]*")


@dataclass(frozen=True)
class Adoption:
    """A trial that should become the job's. why: in words; changes: new values by field of the request."""

    side: str
    why: str
    changes: Mapping[str, Any]


def adoption(found: Comparison, max_drop: float | None) -> Adoption | None:
    """Return the trial that should become the job's; None if no side is, or if that side is no trial with changes.

    That is the best of the sides that are shown to be better than the base; else the base, if the present answers are
    shown to be worse; else, with a loss that is allowed, the cheapest side that passes and costs less than the base.
    """
    better = [side for side in found.sides if is_better(side)]
    if better:
        return _of(found, max(better, key=_accuracy).name, "is better than the base")
    if any(side.name == "current" and is_worse(side) for side in found.sides):
        return _of(found, found.base, "is better than the present answers")
    passing = [] if max_drop is None else [side for side in found.sides if _is_cheap(side, max_drop)]
    if passing:
        return _of(found, min(passing, key=_cost).name, "costs less than the base and passes --max-drop")
    return None


def _of(found: Comparison, side: str, why: str) -> Adoption | None:
    changes = found.changes.get(side)
    return Adoption(side, why, changes) if changes else None


def _accuracy(side: SideComparison) -> float:
    return 0.0 if side.gold is None else side.gold.accuracies[1].value or 0.0


def _cost(side: SideComparison) -> float:
    return side.tally.cost_usd[1] or 0.0


def _is_cheap(side: SideComparison, max_drop: float) -> bool:
    base, other = side.tally.cost_usd
    cheaper = base is not None and other is not None and other < base
    return cheaper and side.gold is not None and passes(side.gold, max_drop)


def adoption_lines(found: Adoption) -> Iterator[str]:
    """Yield the lines that say what to write into the job file."""
    yield ""
    yield f"adopt    {found.side} {found.why}; to make it the job's, write into the job file:"
    yield ""
    yield from yaml_lines(found.changes)


def yaml_lines(changes: Mapping[str, Any]) -> Iterator[str]:
    """Yield these fields, such as `request.prompt`, as YAML."""
    nested: dict[str, Any] = {}
    for name, value in changes.items():
        *path, last = name.split(".")
        at = nested
        for part in path:
            at = at.setdefault(part, {})
        at[last] = value
    yield from _mapping(nested, "")


def _mapping(values: Mapping[str, Any], indent: str) -> Iterator[str]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield f"{indent}{yaml_value(name)}:"
            yield from _mapping(value, f"{indent}  ")
        elif isinstance(value, str) and "\n" in value and _BLOCK.fullmatch(value):
            text = value.removesuffix("\n")
            kept = "" if text != value and not text.endswith("\n") else "-" if text == value else "+"
            yield f"{indent}{yaml_value(name)}: |{kept}"
            yield from (f"{indent}  {line}" if line else "" for line in text.split("\n"))
        else:
            yield f"{indent}{yaml_value(name)}: {yaml_value(value)}"
