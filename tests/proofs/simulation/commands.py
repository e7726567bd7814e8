"""The commands that schedules start, and what each of them does."""

from collections.abc import Callable
from dataclasses import replace

from pipeline.driver.environment import Environment
from pipeline.planning.selection import Selection
from pipeline.runner.options import Options
from pipeline.runner.run import run
from pipeline.runner.sweep import sweep
from pipeline.runner.trial import run_trial
from pipeline.state.jobs import job_named, known_job
from pipeline.steps.cancel import cancel
from tests.proofs.simulation.asked import JOB, NAME_OF_TRIAL, trial_of
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
#: commands about the trial, with the weight of each in schedules that have one
OF_TRIAL = {
    "trial": 5.0,
    "trial --detach": 4.0,
    "cancel trial": 0.7,
    "retry trial": 0.8,
    "retry trial --status canceled": 0.3,
}
RETRIES_OF_TRIAL = {
    "retry trial": Selection(),
    "retry trial --status canceled": Selection(statuses=("canceled",)),
}
#: commands in schedules whose job has tools
WITHOUT_TOOLS = {"collect --no-tools": 2.0}
#: the weights in schedules with many retries, and the actions of such schedules
OFTEN_RETRIED = {"retry": 3.0, "retry --set": 6.0, "cancel": 1.5}


def command(world: World, name: str) -> Callable[[Environment], object]:
    """What a started process does."""
    if name == "collect":
        return sweep
    if name in WITHOUT_TOOLS:
        return lambda where: sweep(replace(where, runs_tools=False))
    if name.startswith("cancel"):
        of = NAME_OF_TRIAL if name == "cancel trial" else JOB
        return lambda where: _cancel(where, of, abandon=name.endswith("--abandon"))
    if "trial" in name:
        return _of_trial(world, name)
    job = world.job()
    options = {
        "run": Options(),
        "run --detach": Options(detach=True),
        "run --limit 2": Options(limit=2),
        "run --refresh": Options(refresh=True),
        **{name: Options(retry=retry, detach="--status" in name) for name, retry in RETRIES.items()},
    }[name]
    return lambda where: run(job, where, options)


def _of_trial(world: World, name: str) -> Callable[[Environment], object]:
    """What a process does about the trial. It reads the job file, which the trial may have been begun before."""
    job, trial = world.job(world.recipe_of_trial), trial_of(world.ways)
    options = Options(retry=RETRIES_OF_TRIAL.get(name), detach=name != "trial")

    def work(where: Environment) -> object:
        if options.retry is not None and known_job(where.database, NAME_OF_TRIAL) is None:
            return None
        return run_trial(job, trial, where, options)

    return work


def _cancel(where: Environment, name: str, *, abandon: bool) -> None:
    """End the runs of the job of this name, if the database knows it."""
    with where.database.read() as conn:
        job = job_named(conn, name)
    if job is None:
        return
    cancel(where, job, abandon=abandon)
