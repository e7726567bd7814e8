"""`models`: which models can a key use?"""

from typing import Annotated

import typer

from pipeline.cli.options import EVERYWHERE, SharedOptions, takes
from pipeline.cli.terminal import put, put_json
from pipeline.errors import InputError


@takes(*EVERYWHERE)
def models(
    client: Annotated[str, typer.Option(help="The SDK's client to use: default, aws or google.")] = "default",
    *,
    shared: SharedOptions,
) -> None:
    """List the models that the key can use: limits, retirement dates, batch prices, capabilities."""
    from pipeline.api.connect import CLIENTS
    from pipeline.cli import models_table
    from pipeline.driver import environment
    from pipeline.job.endpoint import Endpoint
    from pipeline.money.prices import LISTED

    if client not in CLIENTS:
        raise InputError(f"--client {client}: write one of {', '.join(CLIENTS)}")
    with environment.asking(Endpoint(client), emulated=shared.emulator) as api:
        found = models_table.model_facts(api.models(), LISTED)
    if shared.as_json:
        for facts in found:
            put_json({"event": "model", **facts})
        return
    for line in models_table.model_lines(found):
        put(line)
