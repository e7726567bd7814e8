"""Write the changes of a chunk in one transaction, then pack its requests into batches. Edge: SQL, files."""

from pipeline.answer.outcome import Outcome
from pipeline.driver.driver import Driver
from pipeline.planning.moves import InvalidRow, Moves
from pipeline.planning.packer import Packer, Sendable
from pipeline.planning.unchanged import Unchanged
from pipeline.sink.table import Answer, Fixed
from pipeline.state.rows import Replanned, add_rows, forget_bodies_of, keep_rows, mark_changed, replan_rows
from pipeline.states import RowState


class Writer:
    """Writes the chunks of one planning. If we die, rows without a batch stay pending and are planned again."""

    def __init__(self, driver: Driver, run_id: int, recipe: str, packer: Packer, unchanged: Unchanged) -> None:
        """unchanged: gets the numbers of the rows that were written."""
        self._driver, self._run_id, self._recipe = driver, run_id, recipe
        self._packer, self._unchanged = packer, unchanged

    def write(self, moves: Moves) -> list[int]:
        """Commit one chunk, then add its requests to bodies; return the numbers of the batches that this fills."""
        return list(self._packer.add(self._commit(moves)))

    def _commit(self, moves: Moves) -> list[Sendable]:
        """Write all changes of one chunk in one transaction, and return its rows to send with their requests."""
        driver = self._driver
        with driver.planning_transaction(self._run_id) as conn:
            numbers = add_rows(conn, driver.job_id, [written.row for written in moves.new])
            again = zip(moves.again_numbers, moves.again, strict=True)
            replan_rows(conn, [Replanned(number, written.row) for number, written in again])
            mark_changed(conn, moves.changed)
            keep_rows(conn, moves.kept)
            forget_bodies_of(conn, moves.outdated)
            table = driver.sink_now(conn)
            table.update_keep(conn, moves.new_keeps)
            table.write_answers(conn, [self._invalid(row) for row in moves.invalid])
        self._unchanged.planned(moves.chunk, moves.keys, moves.judged, numbers)
        numbers += moves.again_numbers
        numbered = zip(numbers, [*moves.new, *moves.again], strict=True)
        return [Sendable(number, *written.request) for number, written in numbered if written.request is not None]

    def _invalid(self, row: InvalidRow) -> Answer:
        """Return the answer that the results table gets for a row that cannot be sent."""
        fixed = Fixed(
            recipe=self._recipe,
            cost_usd=0.0,
            attempts=row.attempts,
            custom_id=None,
            batch_id=None,
            run_id=self._run_id,
            updated_at=self._driver.now(),
        )
        return Answer(row.key, row.keep, Outcome(RowState.INVALID, "invalid", row.reason), fixed)
