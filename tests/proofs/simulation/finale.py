"""The end of a schedule: faults are cleared, all drivers end, and the job is finished."""

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anthropic
import httpx2
import orjson
from sqlalchemy import Row

from pipeline.source.identity import key_rank
from pipeline.state.jobs import job_named
from pipeline.states import (
    CLOSED_BATCHES,
    CONTINUED,
    OUTCOMES,
    BatchState,
    RowState,
    RunState,
    SendingEnd,
)
from tests.proofs.simulation.asked import JOB, NAME_OF_TRIAL, TRIAL, trial_of
from tests.proofs.simulation.commands import RETRIES, RETRIES_OF_TRIAL
from tests.proofs.simulation.constants import ACCOUNT_ERRORS, ACCOUNTS, MOMENTS, PATIENCE, Violation
from tests.proofs.simulation.faults import PAUSES
from tests.proofs.simulation.rules import is_unfinished
from tests.proofs.simulation.seen import IN_TRIAL, Seen, row_name
from tests.proofs.simulation.tools import result_of
from tests.proofs.simulation.world import World
from tests.support.talking import live_loop

if TYPE_CHECKING:
    from tests.proofs.simulation.schedule import Schedule


class Finale:
    """The end of a schedule: faults are cleared, all drivers end, and the job is finished."""

    def __init__(self, schedule: "Schedule", world: World) -> None:
        self._schedule, self._world = schedule, world

    def play(self) -> None:
        """Finish the job. Raises Violation if it does not end as it must."""
        world = self._world
        world.say("-- everything is put right --")
        self._schedule.mend()
        world.ways.budget_usd = None
        world.emulator._core.processing_seconds = 50
        late = []
        for process in world.processes:
            if process.state == "stopped" and world.chance.random() < 0.6:
                self._schedule.wake_up(process)
            elif process.state == "stopped":
                late.append(process)
        self._settle()
        self._run_to_the_end()
        for process in late:
            self._schedule.wake_up(process)
        if late:
            self._settle()
            self._run_to_the_end()
        self._check_end()

    def _settle(self) -> None:
        """Let all living drivers run until they have ended."""
        world = self._world
        step, turns = 1.0, 0
        while any(process.state == "running" for process in world.processes):
            ready = [process for process in world.processes if process.ready]
            for process in ready:
                self._schedule.go(process, max(MOMENTS))
                world.check()
            if ready:
                continue
            turns += 1
            if turns > PATIENCE:
                names = [process.name for process in world.processes if process.state == "running"]
                raise Violation(f"these drivers do not end: {', '.join(names)}")
            if turns % 8 == 0:  # as a scheduler does; it also continues work that waits for another account's batches
                for account in ACCOUNTS[: world.ways.accounts]:
                    self._schedule.begin("collect", account)
            self._schedule.turn_by(step)
            step = min(1.6 * step, 4 * 3_600.0)

    def _run_to_the_end(self) -> None:
        """Run the job, and sweep for lost batches, until nothing is left to do."""
        world = self._world
        for turn in range(10):
            for account in ACCOUNTS[: world.ways.accounts]:
                for name in self._unfinished_retries():
                    self._schedule.begin(name, account)
                    self._settle()
                last = [self._schedule.begin("run", account)]
                self._settle()
                if self._trial_goes_on():
                    last.append(self._schedule.begin("trial", account))
                    self._settle()
                self._schedule.begin("collect", account)
                self._settle()
            if not any(process.error for process in last) and self._is_done(world.check()):
                return
            self._schedule.turn_by(4_000.0 * 1.5**turn)
        raise Violation(f"the job does not come to its end: {[process.error or process.result for process in last]}")

    def _trial_goes_on(self) -> bool:
        """Return whether the job has a trial with rows to ask, and see to it that its commands read the right job file.

        That is the one that the trial was begun with; its commands are refused after a change of the job's request.
        """
        world = self._world
        with world.shared.read() as conn:
            known = job_named(conn, NAME_OF_TRIAL)
        if known is None or known.trial is None or not world.source:
            return False
        trial, recipes = trial_of(world.ways), range(world.ways.recipe + 1)
        of = (n for n in recipes if trial.asked(world.job(n)).recipe == known.trial.recipe)
        world.recipe_of_trial = next(of, None)
        if world.recipe_of_trial is None:
            raise Violation(f"the trial has a recipe that no job file had: {known.trial}")
        return True

    def _unfinished_retries(self) -> list[str]:
        """Start the commands of retries that died, because no other command continues them."""
        names = {JOB: RETRIES, NAME_OF_TRIAL: RETRIES_OF_TRIAL if self._trial_goes_on() else {}}
        unfinished = [run for run in self._world.look().runs.values() if run.retry and is_unfinished(run)]
        return [name for run in unfinished for name, retry in names[run.name].items() if retry.facts() == run.retry]

    def _is_done(self, seen: Seen) -> bool:
        waiting = any(row.state not in OUTCOMES for row in seen.rows)
        open_now = any(each.state == RunState.OPEN for each in seen.runs.values())
        findable = any(self._is_findable(batch) for batch in seen.batches.values())
        doomed = any(batch.delete_remote for batch in seen.batches.values())
        missed = any(s.end == SendingEnd.ABSENT and self._is_twin(seen, s) for s in seen.sendings)
        return not (waiting or open_now or findable or doomed or missed or self._unclosed(seen))

    def _unclosed(self, seen: Seen) -> bool:
        return any(batch.state not in CLOSED_BATCHES for batch in seen.batches.values())

    def _is_findable(self, batch: Row[Any]) -> bool:
        """Return whether a batch was given up although the API still has its results."""
        is_old = batch.created_at < self._world.at - timedelta(days=28)
        there = batch.api_id is not None and self._world.books.is_there(batch.api_id)
        return batch.state == BatchState.LOST and there and not is_old

    def _is_twin(self, seen: Seen, sending: Row[Any]) -> bool:
        """Return whether a sending that was presumed absent was accepted and could be reported."""
        owned = {each.api_id for each in seen.sendings}
        nonce = seen.batches[sending.batch_id].nonce
        unowned = [b.api_id for b in self._world.books.batches.values() if b.nonce == nonce and b.api_id not in owned]
        recent = sending.ended_at > self._world.at - timedelta(hours=24)
        return recent and any(self._world.books.is_there(api_id) for api_id in unowned)

    def _check_end(self) -> None:
        """Check that every row of the source has an outcome for its current content."""
        world = self._world
        seen = world.check()
        rows = {row_name(row.job, row.key): row for row in seen.rows}
        for key, of in [*((key, key) for key in world.source), *self._of_trial()]:
            text, note = world.source[of]
            row, answer = rows.get(key), seen.answers.get(key)
            if row is None or answer is None:
                raise Violation(f"{key} of the source has no outcome: {row}, {answer}")
            if answer.note != note:
                raise Violation(f"{key} has the note {note!r}, and in the results table {answer.note!r}")
            self._check_content(key, text, row, answer)
            self._check_live(key, answer)
        if self._bodies():
            for name in ("run", *(("trial",) if self._trial_goes_on() else ())):
                self._schedule.begin(name)  # its planning removes the leftovers of the last run
                self._settle()
        if self._bodies():
            raise Violation(f"bodies are left in the spool that nothing needs: {self._bodies()}")
        if world.ways.history:
            self._check_history(seen)
        if world.ways.delete_remote:
            left = [
                b.id
                for b in seen.batches.values()
                if b.state == BatchState.COLLECTED and world.books.is_there(b.api_id)
            ]
            if left:
                raise Violation(f"these batches are not deleted at the API: {left}")

    def _of_trial(self) -> list[tuple[str, str]]:
        """Return the name of each row of the trial's sample, with its key in the source."""
        if not self._trial_goes_on():
            return []
        ranked = sorted(self._world.source, key=lambda key: key_rank(orjson.dumps([key]).decode()))
        return [(f"{TRIAL}{IN_TRIAL}{key}", key) for key in ranked[: self._world.ways.sample]]

    def _bodies(self) -> list[Path]:
        """Return the bodies in the spool. Those of lost batches stay if answers go on: they may be found again."""
        of_lost = {batch.nonce for batch in self._world.look().batches.values() if batch.state == BatchState.LOST}
        needed = of_lost if self._world.ways.rounds > 1 else set()
        return [body for body in (self._world.folder / "spool").glob("*/*.json") if body.stem not in needed]

    def _check_content(self, key: str, text: str, row: Row[Any], answer: Row[Any]) -> None:
        world = self._world
        if answer.status == RowState.INVALID:
            if text and not world.too_large:
                raise Violation(f"{key} is taken for invalid: {answer}")
            return
        sent = world.books.requests.get((answer.batch_id, answer.custom_id))
        if sent is not None and sent.text != text:
            raise Violation(f"{key} is {text!r}, and its answer is to {sent.text!r}")
        retryable = answer.error_type in world.job().retry.errors and row.attempts < world.ways.attempts
        if answer.error_type in ACCOUNT_ERRORS or retryable:
            raise Violation(f"{key} is not sent again: {answer}")

    def _check_live(self, key: str, answer: Row[Any]) -> None:
        """Check that a row that has used tools has the answer of a live loop, unless a call took too long."""
        world = self._world
        sent = world.books.requests.get((answer.batch_id, answer.custom_id))
        if sent is None or sent.round == 1 or answer.status != RowState.SUCCEEDED or PAUSES in sent.text:
            return
        if (sent.api_id, sent.custom_id) in world.rules.conversations.gave_up:
            return
        rest = {name: value for name, value in world.books.params(sent).items() if name != "messages"}
        http = httpx2.Client(transport=world.emulator.transport())
        with anthropic.Anthropic(api_key=ACCOUNTS[0], base_url="http://emulator", http_client=http) as client:
            live = live_loop(client, f"{sent.recipe} | {sent.text}", result_of, rest)
        if (answer.text, answer.rounds) != (live.text, live.rounds):
            raise Violation(f"{key} has {answer}, and a live loop {live}")

    def _check_history(self, seen: Seen) -> None:
        """Check that every answer that was paid for is stored."""
        world = self._world
        kept = seen.replaced | {answer.custom_id for answer in seen.answers.values()}
        of_job = {run.id for run in seen.runs.values() if run.name == JOB}  # a trial has no history
        done = [b for b in seen.batches.values() if b.state == BatchState.COLLECTED]
        collected = {b.api_id for b in done if b.run_id in of_job}
        for (api_id, custom_id), sent in world.books.requests.items():
            result = world.books.result(sent)
            if not result or world.books.status(sent)[0] == CONTINUED:
                continue
            if api_id in collected and result["type"] == "succeeded" and custom_id not in kept:
                raise Violation(f"the answer to {sent} was paid for, and is nowhere")
