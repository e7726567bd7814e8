"""The commands that schedules start, and what each of them does."""

from collections.abc import Callable

from pipeline.driver.environment import Environment
from pipeline.planning.selection import Selection
from pipeline.runner.options import Options
from pipeline.runner.run import run
from pipeline.runner.sweep import sweep
from pipeline.state.jobs import job_named
from pipeline.steps.cancel import cancel
from tests.proofs.simulation.world import World

#: commands, with the weight of each
COMMANDS = {
    "run": 6.0,
    "run --detach": 5.0,
    "run --limit 2": 0.7,
    "run --refresh": 0.4,
    "collect": 5.0,
    "cancel": 0.7,
    "cancel --abandon": 0.2,
    "retry": 1.0,
    "retry --set": 1.0,
    "retry --status canceled": 0.5,
    "retry --status lost": 0.4,
}
RETRIES = {
    "retry": Selection(),
    "retry --set": Selection(changes={"request.max_tokens": 200}),
    "retry --status canceled": Selection(statuses=("canceled",)),
    "retry --status lost": Selection(statuses=("lost",)),
}
#: the weights in schedules with many retries, and the actions of such schedules
OFTEN_RETRIED = {"retry": 3.0, "retry --set": 6.0, "cancel": 1.5}


def command(world: World, name: str) -> Callable[[Environment], object]:
    """What a started process does."""
    if name == "collect":
        return sweep
    if name.startswith("cancel"):
        return lambda where: _cancel(where, abandon=name.endswith("--abandon"))
    job = world.job()
    options = {
        "run": Options(),
        "run --detach": Options(detach=True),
        "run --limit 2": Options(limit=2),
        "run --refresh": Options(refresh=True),
        **{name: Options(retry=retry, detach="--status" in name) for name, retry in RETRIES.items()},
    }[name]
    return lambda where: run(job, where, options)


def _cancel(where: Environment, *, abandon: bool) -> None:
    with where.database.read() as conn:
        job = job_named(conn, "simulated")
    if job is None:
        return
    cancel(where, job, abandon=abandon)
