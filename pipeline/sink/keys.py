"""Conditions on the keys of answers, which have one column or several. Pure."""

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import ColumnElement, literal, tuple_


def among(columns: Sequence[ColumnElement[Any]], keys: Collection[tuple[Any, ...]]) -> ColumnElement[bool]:
    """Return the condition that these columns hold one of these keys."""
    if len(columns) == 1:
        return columns[0].in_([value for (value,) in keys])
    return tuple_(*columns).in_(list(keys))


def after(columns: Sequence[ColumnElement[Any]], last: Sequence[Any]) -> ColumnElement[bool]:
    """Return the condition that a row stands behind another one in the order of these columns.

    last: the other row, which begins with the values of these columns.
    """
    values = [literal(value, column.type) for value, column in zip(last, columns, strict=False)]
    return columns[0] > values[0] if len(columns) == 1 else tuple_(*columns) > tuple_(*values)
