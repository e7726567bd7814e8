"""One sweep's collecting in parts that other processes can do: which batches have ended, and one of them."""

import contextlib
from collections.abc import Collection
from typing import NamedTuple

from sqlalchemy import select

from pipeline import naming, store
from pipeline.collect import JobOfRun, collect_due
from pipeline.database import Database
from pipeline.driver import Driver
from pipeline.errors import DatabaseError, InputError, LostRace, Stopped
from pipeline.leases import local_now
from pipeline.poll import poll_due
from pipeline.states import BatchState
from pipeline.tables import batches, leases
from pipeline.where import Where


def ended_batches(where: Where, job: str | None = None) -> list[tuple[str, int]]:
    """Ask after all that is at the API, and list what has ended and is not collected: job and batch.

    job: of one job only. A job that cannot be asked after, and batches of other accounts, are left to the sweep, which
    says why.
    """
    with where.database.read() as conn:
        waiting = store.jobs_with_work(conn, now=where.now())
        rows = [row for row in store.all_jobs(conn) if row.id in waiting and job in (None, row.name)]
    found: list[tuple[str, int]] = []
    for client, of_client in where.by_client(rows).items():
        with contextlib.suppress(InputError), where.driving(client) as driving:
            for row in of_client:
                with contextlib.suppress(Stopped, DatabaseError, LostRace):
                    found += _ended(driving.driver(row))
    return found


def _ended(driver: Driver) -> list[tuple[str, int]]:
    poll_due(driver)
    with driver.reading() as conn:
        ended = store.batches_in(conn, driver.job_id, BatchState.ENDED, due=driver.now())
    return [(driver.job_name, batch.id) for batch in ended if batch.account_id == driver.account_id]


def collect_one(where: Where, job: str, batch: int) -> None:
    """Collect this batch, unless another driver has it or has done it, or another account has sent it.

    Raises Stopped or InputError when the API cannot be asked, InputError for an unknown job.
    """
    row = naming.known_job(where.database, job)
    with where.driving(where.client_of(row)) as driving:
        driver = driving.driver(row)
        this_one = (batches.c.id == batch) & store.of_account(driver.account_id)
        collect_due(driver, JobOfRun(driver), only=this_one)


class Left(NamedTuple):
    """What is not collected yet of some ended batches, and which of it a living driver is collecting."""

    waiting: frozenset[int]
    held: frozenset[int]


def left_of(database: Database, wanted: Collection[int]) -> Left:
    """How far the collecting of these batches has come, whoever does it."""
    with database.read() as conn:
        living = select(leases.c.resource).where(leases.c.expires_at > database.now(conn, local_now()))
        held = batches.c.claimed_by.in_(living).is_(True)
        ended = conn.execute(select(batches.c.id, held).where(batches.c.state == BatchState.ENDED)).all()
    waiting = {number: is_held for number, is_held in ended if number in wanted}
    return Left(frozenset(waiting), frozenset(number for number, is_held in waiting.items() if is_held))
