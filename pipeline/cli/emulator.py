"""`emulator`: serve an emulator of the API."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.options import takes
from pipeline.errors import InputError


@takes("debug")
def emulator(
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 for a free one.")] = 8787,
    processing_seconds: Annotated[float, typer.Option(min=0, help="Seconds that a batch takes.")] = 2.0,
    faults: Annotated[Path | None, typer.Option(help="A YAML or JSON file of faults; see docs/emulator.md.")] = None,
    data: Annotated[Path, typer.Option(help="Folder that keeps its batches when it ends.")] = Path("emulator-data"),
) -> None:
    """Run an emulator of the Messages and Message Batches API, for tests of your own pipelines."""
    from pipeline.emulator import EmulatorError, serve

    try:
        serve(data, port=port, processing_seconds=processing_seconds, faults_file=faults)
    except EmulatorError as exc:
        raise InputError(str(exc)) from exc
