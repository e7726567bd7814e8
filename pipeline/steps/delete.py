"""Delete collected batches at the API, for jobs that want them deleted there. Edge: SQL, HTTP."""

from pipeline.driver.driver import Driver
from pipeline.errors import NotFound, Stopped
from pipeline.events.batches import BatchDeleted, BatchNotDeleted
from pipeline.state.claims import TO_DELETE
from pipeline.state.conditions import soon
from pipeline.state.moves import mark_deleted, postpone
from pipeline.states import BatchState
from pipeline.steps.collect import RETRY_SECONDS
from pipeline.steps.delete_files import delete_files_due


def delete_batches_due(driver: Driver) -> None:
    """Delete at the API what the job wants deleted there: collected batches, and uploaded files that are not needed.

    A batch or file that cannot be deleted now is deleted by a later call.
    """
    delete_files_due(driver)
    for batch in driver.claims(BatchState.COLLECTED, only=TO_DELETE):
        assert batch.api_id is not None
        problem = None
        if batch.account_id != driver.account_id:
            problem = "it was sent by another account"
        else:
            try:
                driver.api.delete(batch.api_id)
            except NotFound:
                pass  # it is deleted already
            except Stopped as exc:
                problem = str(exc)
        with driver.moving(batch) as conn:
            if problem is None:
                mark_deleted(conn, batch)
            else:
                due_at = soon(driver.now(), RETRY_SECONDS)
                postpone(conn, batch, due_at=due_at, problem=f"not deleted at the API yet: {problem}")
        if problem is None:
            driver.tell(BatchDeleted(batch=batch.id, problem=None))
        else:
            driver.tell(BatchNotDeleted(batch=batch.id, problem=problem))
