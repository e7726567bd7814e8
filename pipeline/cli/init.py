"""`init`: write a first job file for a data file."""

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.options import EVERYWHERE, SharedOptions, takes
from pipeline.cli.terminal import put_json, say, say_next
from pipeline.errors import InputError

_TIMEOUT_SECONDS = 10.0  # of the one call, which lists the models


@takes(*EVERYWHERE)
def init(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A data file: CSV, TSV, Parquet, NDJSON or Arrow.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The job file to write. Default: the name of FILE with .yaml.")
    ] = None,
    *,
    shared: SharedOptions,
) -> None:
    """Write a commented job file for a data file. Never overwrites a file."""
    from pipeline.cli.first_job import write_job_file

    written = write_job_file(file, output, _newest_haiku())
    if shared.as_json:
        put_json({"event": "init", "file": str(written)})
    else:
        say(f"wrote {written}")
    say_next("check", str(written))


def _newest_haiku() -> str:
    """Return the newest Haiku that the key can use, or, without a key, of the price list. Haiku models cost least."""
    from pipeline.api import capabilities
    from pipeline.api.client import Api
    from pipeline.api.reach import Reach
    from pipeline.errors import Stopped
    from pipeline.money.prices import context_windows

    listed: list[str] = []
    with (
        contextlib.suppress(InputError, Stopped),
        contextlib.closing(Api.connect(Reach("default", _TIMEOUT_SECONDS))) as api,
    ):
        listed = [info.id for info in api.models()]
    found = capabilities.newest(listed, "haiku") or capabilities.newest(context_windows(), "haiku")
    assert found is not None, "the price list has a Haiku"
    return found
