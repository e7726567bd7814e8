"""Write what a chunk changes in known rows, then pack its requests into batches. Edge: SQL, files."""

from pipeline.driver.driver import Driver
from pipeline.planning.moves import Moves
from pipeline.planning.packer import Packer
from pipeline.planning.unchanged import Unchanged
from pipeline.state.rows import forget_bodies_of, keep_rows, mark_changed, replan_rows
from pipeline.state.turns import carry_over, repeat_rounds


class Writer:
    """Writes the chunks of one planning. If we die, known rows without a batch stay pending and are planned again."""

    def __init__(self, driver: Driver, run_id: int, recipe: str, packer: Packer, unchanged: Unchanged | None) -> None:
        """unchanged: notes each chunk that was written; None: the chunks are parts that need no note."""
        self._driver, self._run_id, self._recipe = driver, run_id, recipe
        self._packer, self._unchanged = packer, unchanged

    def write(self, moves: Moves) -> list[int]:
        """Commit one chunk, then add its requests to bodies; return the numbers of the batches that this fills."""
        if moves.changes_known_rows:
            self._commit(moves)
        if self._unchanged is not None:
            new, replanned = len(moves.new.keys), len(moves.replanned)
            self._unchanged.note_planned(moves.chunk, moves.keys, moves.judged, new=new, replanned=replanned)
        self._packer.look_for(moves.suspects)
        return [*self._packer.add_new(moves.new), *self._packer.add(moves.again)]

    def _commit(self, moves: Moves) -> None:
        """Write all changes of known rows in one transaction."""
        driver = self._driver
        with driver.planning_transaction(self._run_id) as conn:
            replan_rows(conn, moves.replanned)
            carry_over(conn, self._run_id, moves.in_rounds)
            repeat_rounds(conn, self._run_id, moves.lost_rounds)
            mark_changed(conn, moves.changed)
            keep_rows(conn, moves.kept)
            forget_bodies_of(conn, moves.outdated)
            table, now = driver.sink_now(conn), driver.now()
            table.update_keep(conn, moves.new_keeps)
            table.write_answers(conn, [row.answer(self._run_id, self._recipe, now) for row in moves.invalid])
