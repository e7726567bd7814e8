"""`compare`: how do the answers of several sides differ, and which are better?"""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.opening import heavy_imports, load_with_last_vars, open_known_job
from pipeline.cli.options import EVERYWHERE, JobArgument, LastVarOption, SharedOptions, takes
from pipeline.cli.terminal import put, put_json, say, say_next
from pipeline.errors import InputError

if TYPE_CHECKING:
    from pipeline.quality.compare import Comparison, Differing
    from pipeline.sink.sides import SideAnswer


@takes(*EVERYWHERE)
def compare(
    job: JobArgument,
    sides: Annotated[
        list[str],
        typer.Argument(metavar="BASE SIDE...", help="Two or more of: current, job:NAME, a .parquet file of answers."),
    ],
    max_drop: Annotated[
        float | None,
        typer.Option(metavar="SHARE", min=0, max=1, help="Exit with 1 unless a larger loss of accuracy is excluded."),
    ] = None,
    rows: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the rows whose answers differ to this .ndjson file.")
    ] = None,
    var: LastVarOption = None,
    *,
    shared: SharedOptions,
) -> None:
    """Compare answers of other sides with those of a base, row by row: agreement, flips, cost, and accuracy by gold."""
    with heavy_imports():
        from pipeline.quality.compare import compare as compared
        from pipeline.report.compare import comparison_facts, comparison_lines

    if len(sides) < 2:
        raise InputError(
            "give two sides: the base first, then what is compared with it, as in `compare JOB current FILE`"
        )
    with open_known_job(job, shared) as (database, job_record), _written(rows) as differing:
        loaded, _ = load_with_last_vars(database, job_record, job, var)
        if max_drop is not None and loaded.gold is None:
            raise InputError(f"--max-drop: job {loaded.name} has no gold by which accuracies could be compared")
        found = compared(database, job_record, loaded, sides, differing)
    if shared.as_json:
        put_json({"event": "compare", "job": loaded.name, **comparison_facts(found, max_drop)})
    else:
        for line in comparison_lines(found, max_drop):
            put(line)
        sys.stdout.flush()
    say_next("evaluate" if loaded.gold is not None else "export", job)
    if max_drop is not None and not _all_pass(found, max_drop):
        raise typer.Exit(1)


def _all_pass(found: "Comparison", max_drop: float) -> bool:
    """Return whether no side may lose more than this. Raises InputError if that cannot be said by gold."""
    from pipeline.report.compare import passes, verdict_words

    if found.chosen:
        raise InputError(
            "--max-drop: the rows with gold were chosen, so they say nothing about the other rows; give gold for a "
            "random sample"
        )
    for side in found.sides:
        if side.tally.undecided:
            raise InputError(f"--max-drop: {verdict_words(side)}")
        if side.gold is None:
            raise InputError(f"--max-drop: no row that {side.name} and {found.base} have answered has gold")
    return all(side.gold is not None and passes(side.gold, max_drop) for side in found.sides)


@contextlib.contextmanager
def _written(path: Path | None) -> "Iterator[Differing]":
    """Yield a function that writes a row whose answers differ to a file; one that does nothing for None."""
    import orjson

    if path is None:
        yield lambda *_: None
        return
    if path.suffix != ".ndjson":
        raise InputError(f"--rows {path}: write the path of an .ndjson file")
    if path.exists():
        raise InputError(f"--rows {path}: the file exists; choose another name, or remove it")
    unfinished = path.with_name(f"{path.name}.unfinished")
    try:
        with unfinished.open("wb") as out:

            def write(side: str, key: tuple[object, ...], base: "SideAnswer", other: "SideAnswer") -> None:
                answers = {"base": base, "answer": other}
                facts = {what: {"status": of.status, "values": of.values} for what, of in answers.items()}
                out.write(orjson.dumps({"side": side, "key": key, **facts}, default=str) + b"\n")

            yield write
        unfinished.rename(path)
    finally:
        unfinished.unlink(missing_ok=True)
    say(f"wrote    {path}")
