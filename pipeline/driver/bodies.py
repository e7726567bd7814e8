"""Which bodies in the spool does a job no longer need? Edge: SQL."""

from collections.abc import Sequence

from pipeline.answer.continuing import goes_on
from pipeline.driver.driver import Driver
from pipeline.job.model import Job
from pipeline.state.batches import RESULTS_KEPT
from pipeline.state.rows import unneeded_bodies


def unneeded(driver: Driver, job: Job, batch_ids: Sequence[int] | None = None) -> list[str]:
    """Return the nonces of the bodies that no row of the job needs. batch_ids: only of these batches; None: of all.

    A batch that is lost may be found again for as long as the API keeps results. If an answer in it goes on, the next
    request is made from the one in the body.
    """
    sent_after = driver.now() - RESULTS_KEPT if goes_on(job) else None
    with driver.reading() as conn:
        return unneeded_bodies(conn, driver.job_id, batch_ids, sent_after=sent_after)
