"""`init`: a first job file for a data file."""

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.options import EVERYWHERE, SharedOptions, takes
from pipeline.cli.terminal import put_json, say, say_next
from pipeline.errors import InputError

PATIENCE_SECONDS = 10.0  # with an API that is only asked which models it has


@takes(*EVERYWHERE)
def init(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A data file: CSV, TSV, Parquet, NDJSON or Arrow.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The job file to write. Default: FILE's name .yaml")
    ] = None,
    *,
    shared: SharedOptions,
) -> None:
    """Write a commented job file for a data file; never overwrites."""
    from pipeline.cli.first_job import write_job_file

    written = write_job_file(file, output, _newest_haiku())
    if shared.as_json:
        put_json({"event": "init", "file": str(written)})
    else:
        say(f"wrote {written}")
    say_next("check", str(written))


def _newest_haiku() -> str:
    """The newest Haiku, which is the cheapest line, that the key can use; without a key, that the price list has."""
    from pipeline.api import capabilities
    from pipeline.api.client import Api
    from pipeline.api.connect import Reach
    from pipeline.errors import Stopped
    from pipeline.money.prices import context_windows

    listed: list[str] = []
    with (
        contextlib.suppress(InputError, Stopped),
        contextlib.closing(Api.connect(Reach("default", PATIENCE_SECONDS))) as api,
    ):
        listed = [info.id for info in api.models()]
    found = capabilities.newest(listed, "haiku") or capabilities.newest(context_windows(), "haiku")
    assert found is not None, "the price list has a Haiku"
    return found
