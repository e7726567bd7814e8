"""What a writer of one format takes. Pure."""

from collections.abc import Sequence
from typing import Any, Protocol

from sqlalchemy import Column

Columns = Sequence[Column[Any]]
Rows = Sequence[Sequence[Any]]


class Writer(Protocol):
    """Writes answers of one format into an open file, which it does not close."""

    def write(self, rows: Rows) -> None:
        """Write answers. rows: values as the database gives them, in the order of the writer's columns."""

    def write_arrow(self, table: Any) -> None:
        """Write answers. table: an Arrow table of batches from `arrow.record_batch`."""

    def close(self) -> None:
        """Write the end of the format, after the last answers."""
