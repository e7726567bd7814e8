"""Refuse folders that are tables of Delta Lake, Iceberg or Hudi, whose files also hold outdated rows. Edge: files."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from pipeline.errors import SourceError

_READ_BY = {
    "a Delta table": "read it by polars.scan_delta and pass the frame in Python",
    "an Iceberg table": "read it by polars.scan_iceberg and pass the frame in Python",
    "a Hudi table": "read it with a tool that knows Hudi",
}


def refuse_within(folder: str, paths: Iterable[Sequence[str]]) -> None:
    """Raise SourceError if the folder contains a lake table. paths: of all files below it, each as its parts."""
    for parts in paths:
        for i, part in enumerate(parts):
            if kind := _kind(part, parts[-1]):
                raise _refusal("/".join([folder.rstrip("/"), *parts[:i]]), kind)


def refuse_above(folders: Iterable[Path]) -> None:
    """Raise SourceError if one of these local folders, or a folder above it, is a lake table."""
    for folder in dict.fromkeys(each for start in folders for each in (start, *start.parents)):
        for kind, markers in (
            ("a Delta table", [folder / "_delta_log"]),
            ("a Hudi table", [folder / ".hoodie"]),
            ("an Iceberg table", folder.glob("metadata/*.metadata.json")),
        ):
            if any(marker.exists() for marker in markers):
                raise _refusal(str(folder), kind)


def _kind(part: str, name: str) -> str | None:
    match part:
        case "_delta_log":
            return "a Delta table"
        case ".hoodie":
            return "a Hudi table"
        case "metadata" if name.endswith(".metadata.json"):
            return "an Iceberg table"
        case _:
            return None


def _refusal(folder: str, kind: str) -> SourceError:
    return SourceError(
        f"source.path: {folder} is {kind}, and some of its files hold rows that were deleted or replaced; "
        f"{_READ_BY[kind]}, or export its rows to other files"
    )
