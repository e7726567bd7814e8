"""`models`: the models that a key can use, what they cost in a batch and what they take."""

from typing import Annotated

import typer

from pipeline.cli.options import EVERYWHERE, SharedOptions, takes
from pipeline.cli.terminal import put, put_json
from pipeline.errors import InputError


@takes(*EVERYWHERE)
def models(
    client: Annotated[str, typer.Option(help="Which of the SDK's clients asks: default, aws or google.")] = "default",
    *,
    shared: SharedOptions,
) -> None:
    """The models that the key can use: batches, limits, retirement dates, batch prices, capabilities."""
    from pipeline.api.connect import CLIENTS
    from pipeline.cli import models_table
    from pipeline.driver import environment
    from pipeline.money.prices import LISTED

    if client not in CLIENTS:
        raise InputError(f"--client {client}: write one of {', '.join(CLIENTS)}")
    with environment.asking(client, emulated=shared.emulator) as api:
        found = models_table.model_facts(api.models(), LISTED)
    if shared.as_json:
        for facts in found:
            put_json({"event": "model", **facts})
        return
    for line in models_table.model_lines(found):
        put(line)
