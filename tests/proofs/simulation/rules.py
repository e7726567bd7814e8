"""What must hold after each step of a schedule?"""

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import Row, select

from pipeline.state import leases, settled
from pipeline.state.tables import batches, jobs, requests, stretches
from pipeline.state.tables import leases as lease_table
from pipeline.states import (
    CONTINUED,
    OPEN_BATCHES,
    OUTCOMES,
    BatchState,
    RowState,
    RunReason,
    RunState,
    SendingEnd,
)
from tests.proofs.simulation.books import Sent
from tests.proofs.simulation.constants import ACCOUNT_ERRORS
from tests.proofs.simulation.rounds import Conversations
from tests.proofs.simulation.seen import IN_TRIAL, Seen, row_name

if TYPE_CHECKING:
    from tests.proofs.simulation.world import World


def _of_the_same_attempts(earlier: Sequence[Sent], now: Sent) -> Iterator[Sent]:
    """Return the sendings of a row that count as attempts together with the current one, newest first.

    They have the same recipe and text. A retry starts at 0: earlier sendings do not count, and when a retry sends the
    row for the first time, no sending counts.
    """
    later = now
    for sent in reversed(earlier):
        begins = later.is_retry and sent.run != later.run
        if begins or (sent.recipe, sent.text, sent.round) != (now.recipe, now.text, now.round):
            return
        yield sent
        later = sent


def is_unfinished(run: Row[Any]) -> bool:
    """Return whether the same command continues the run."""
    return bool(run.state == RunState.OPEN or run.reason == RunReason.BUDGET)


class Rules:
    """What must hold in a world. A violation is noted there, and raised by its next check."""

    def __init__(self, world: "World") -> None:
        self._world, self._books, self._violated = world, world.books, world.violated
        self._marked: dict[bytes, dict[int, tuple[object, ...]]] = {}  # succeeded rows by the mark that covers them
        self.conversations = Conversations(world)
        self._let_go: set[int] = set()  # batches that were sent when their run had no gate
        self._recipes: defaultdict[str, set[str]] = defaultdict(set)  # that a row had since it was last accepted

    def judge(self, key: str, earlier: Sequence[Sent], now: Sent) -> None:
        """Check that an accepted row was due: no earlier sending of it has succeeded or may still succeed."""
        recipes = self._recipes.pop(key, set())
        if now.round > 1:
            self.conversations.enter(key, earlier, now)
        for before in earlier:
            if self._books.result(before) is None and not self._may_be_paid_twice(before, now):
                self._violated(f"{key} is accepted in {now.api_id} while it runs in {before.api_id}")
        if not earlier or self._may_be_paid_twice(earlier[-1], now) or earlier[-1].text != now.text:
            return
        result = self._books.result(earlier[-1])
        if result is None:  # which is already a violation
            return
        status, error_type = self._books.status(earlier[-1])
        if self._world.odd and status in (RowState.SUCCEEDED, CONTINUED):
            return  # its line may have been damaged, so that it did not succeed for the driver
        if earlier[-1].round != now.round or status == CONTINUED:
            self._judge_round(key, earlier[-1], now, status, recipes)
            return
        alike = list(_of_the_same_attempts(earlier, now))
        if status == RowState.SUCCEEDED and (earlier[-1].sha == now.sha or not self._world.started["run --refresh"]):
            self._violated(f"{key} is accepted in {now.api_id}, though it succeeded in {earlier[-1].api_id}")
        again = "retry trial --status canceled" if IN_TRIAL in key else "retry --status canceled"
        if status == RowState.CANCELED and not self._world.started[again]:
            self._violated(f"{key} is accepted in {now.api_id}, though it was canceled in {earlier[-1].api_id}")
        if error_type in ACCOUNT_ERRORS or not alike or status == RowState.CANCELED:
            return
        counted = [sent for sent in alike if self._books.status(sent)[1] not in ACCOUNT_ERRORS]
        if error_type not in self._world.job().retry.errors or len(counted) >= self._world.ways.attempts:
            self._violated(f"{key} is accepted in {now.api_id} after {len(counted)} attempts, then {error_type}")

    def _judge_round(self, key: str, before: Sent, now: Sent, status: str, recipes: set[str]) -> None:
        """Check that a row was due in this round after an answer in another one, or one after which it goes on.

        recipes: all that the row has had between the two.
        """
        if now.round == before.round + 1 and status == CONTINUED:
            return
        again = self._world.bodies_lost and status == CONTINUED and now.round == before.round
        other = before.recipe != now.recipe or before.edits != now.edits or (now.is_retry and now.run != before.run)
        # A command with another job file may have taken the row back, and sent nothing.
        other = other or len(recipes) > 1
        if not again and not (now.round == 1 and other):
            self._violated(
                f"{key} is accepted in {now.api_id} in round {now.round}, though it is {status} in "
                f"round {before.round} of {before.api_id}"
            )

    def _may_be_paid_twice(self, before: Sent, now: Sent) -> bool:
        """Return whether an earlier sending could not be known, or a person or the source asked for another one."""
        if before.api_id in self._world.hidden:
            return True
        nonce = self._books.batches[before.api_id].nonce
        with self._world.shared.read() as conn:
            row = conn.execute(select(batches.c.id, batches.c.state).where(batches.c.nonce == nonce)).one()
        was_lost = row.id in self._world.lost_batches or row.state == BatchState.LOST
        return was_lost and (now.text != before.text or self._world.started["retry --status lost"] > 0)

    def check(self, seen: Seen) -> None:
        """Note what does not hold that must hold after each step."""
        for row in seen.rows:
            self._check_row(seen, row)
        counted = Counter((row.run_id, row.state) for row in seen.rows)
        if any(seen.tallies[of] != counted[of] for of in seen.tallies.keys() | counted.keys()):
            self._violated(f"rows by run and state are kept as {seen.tallies}, and there are {counted}")
        for batch in seen.batches.values():
            self._check_batch(seen, batch)
        self._check_sendings(seen)
        for name, answer in seen.answers.items():
            self._check_answer(name, answer)
        for each in seen.runs.values():
            self._check_budget(seen, each)
            self._check_gate(seen, each)
        self.conversations.check_calls()
        self._check_signs()
        self._check_marks()

    def _check_marks(self) -> None:
        """Check that no row that has succeeded changes while a mark says that its source is settled."""
        columns = [requests.c[name] for name in ("id", "state", "key", "row_hash", "keep", "outcome_hash")]
        of_job = select(*columns).join(jobs, jobs.c.id == requests.c.job_id).where(jobs.c.trial_of.is_(None))
        with self._world.shared.read() as conn:
            succeeded = {row.id: tuple(row) for row in conn.execute(of_job) if row.state == "succeeded"}
            for mark in conn.execute(select(stretches).where(stretches.c.first == 0)):
                if settled.settled_rows(conn, mark.job_id, mark.source) is None:
                    continue
                before = self._marked.setdefault(mark.digest, succeeded)
                if len(before) < mark.rows or any(succeeded.get(row) != was for row, was in before.items()):
                    self._violated(f"a source of {mark.rows} rows is marked as settled, and a row has changed since")

    def _check_signs(self) -> None:
        """Check that no living driver lost its sign of life, unless it was silent for days."""
        with self._world.shared.read() as conn:
            known = set(conn.scalars(select(lease_table.c.resource)))
        living = [process for process in self._world.processes if process.state in ("running", "stopped")]
        for renewal in itertools.chain.from_iterable(process.renewals for process in living):
            silent = self._world.at - renewal.renewed_at
            # because clocks may be wrong by an hour in both directions
            days = leases.FORGOTTEN_AFTER - timedelta(hours=3)
            if renewal.lease.resource not in known and silent < days:
                self._violated(f"{renewal.process.name} lives, and its {renewal.lease.resource} is gone")

    def _check_row(self, seen: Seen, row: Row[Any]) -> None:
        key = row_name(row.job, row.key)
        self._recipes[key].add(row.recipe)
        answer = seen.answers.get(key)
        if row.state == RowState.IN_FLIGHT:
            batch = seen.batches[row.batch_id]
            if batch.state not in OPEN_BATCHES or not 0 <= row.n < batch.requests:
                self._violated(f"{key} is in flight as request {row.n} of batch {batch.id}, which is {batch.state}")
        if row.state in OUTCOMES and row.state != row.outcome:
            self._violated(f"{key} is {row.state}, and its outcome {row.outcome}")
        self._check_attempts(seen, key, row)
        if (answer and answer.status) != row.outcome:
            self._violated(f"{key} has the outcome {row.outcome}, and in the results table {answer}")
        sent = len(self._books.rows[key]) + self._world.too_large  # a sending that was refused for its size counts, too
        if row.state != RowState.INVALID and row.attempts > sent:
            self._violated(f"{key} counts {row.attempts} attempts of {sent} sendings")

    def _check_attempts(self, seen: Seen, key: str, row: Row[Any]) -> None:
        """Check that a row in a retry keeps its attempts until it is answered, and gets them back if it is not."""
        answer, run = seen.answers.get(key), seen.runs[row.run_id]
        if run.retry is None:
            return
        if row.state == RowState.PENDING and not is_unfinished(run):
            self._violated(f"{key} waits for run {run.id}, a retry that is {run.state}: {run.reason}")
        found_again = row.state == RowState.IN_FLIGHT and row.batch_id in self._world.lost_batches
        in_rounds = self._world.ways.rounds > 1  # then those of the row are of its last round
        if answer is None or (abs(row.attempts) != answer.attempts and not found_again and not in_rounds):
            self._violated(f"{key} counts {row.attempts} attempts in a retry, and its answer is {answer}")

    def _check_batch(self, seen: Seen, batch: Row[Any]) -> None:
        held = (RowState.IN_FLIGHT, RowState.LOST)  # the rows of a batch that is given up are lost first
        flying = sum(row.batch_id == batch.id and row.state in held for row in seen.rows)
        whole = batch.state in OPEN_BATCHES and batch.state != BatchState.ENDED
        whole = whole and batch.id not in self._world.lost_batches
        if flying != batch.rows and whole:
            self._violated(f"batch {batch.id} is {batch.state} with {flying} of its {batch.rows} rows")
        if batch.api_id is not None:
            there = self._books.batches.get(batch.api_id)
            if there is None or (there.nonce, there.requests) != (batch.nonce, batch.requests):
                self._violated(f"batch {batch.id} with nonce {batch.nonce} is taken for {batch.api_id}: {there}")
        if batch.state != BatchState.COLLECTED or batch.id in self._world.lost_batches:
            return
        if sum((batch.outcomes or {}).values()) != batch.rows:
            self._violated(f"batch {batch.id} of {batch.rows} rows has the outcomes {batch.outcomes}")
        if abs(batch.cost_usd - self._books.cost(batch.api_id)) > 1e-9 and not self._world.odd:
            self._violated(f"batch {batch.id} costs {batch.cost_usd}, and at the API {self._books.cost(batch.api_id)}")

    def _check_sendings(self, seen: Seen) -> None:
        owned = {sending.api_id for sending in seen.sendings}
        last = {sending.batch_id: sending for sending in seen.sendings}
        numbers = {batch.nonce: batch for batch in seen.batches.values()}
        open_ends = [s.batch_id for s in seen.sendings if s.end in (None, SendingEnd.UNKNOWN) and s.api_id is None]
        if len(open_ends) != len(set(open_ends)):
            self._violated(f"a batch has two sendings of unknown end: {open_ends}")
        for accepted in self._books.batches.values():
            batch = numbers.get(accepted.nonce)
            if accepted.api_id in owned or accepted.api_id in self._world.hidden:
                continue
            if batch is None or batch.state not in (BatchState.SUBMITTING, BatchState.LOST):
                self._violated(
                    f"nobody knows of {accepted.api_id}: its batch is {batch}, {batch and last.get(batch.id)}"
                )

    def _check_answer(self, name: str, answer: Row[Any]) -> None:
        if answer.batch_id is None or answer.status == RowState.LOST:
            return
        sent = self._books.requests.get((answer.batch_id, answer.custom_id))
        result = None if sent is None else self._books.result(sent)
        if sent is None or result is None:
            self._violated(f"the answer {answer} is to nothing that the API has ended")
            return
        if sent not in self._books.rows[name]:
            self._violated(f"the answer {answer} of {name} is to the request of another row: {sent}")
        odd = self._world.odd and answer.error_type == "odd_result" and result["type"] == "succeeded"
        if (answer.status, answer.error_type) != self._books.status(sent) and not odd:
            self._violated(f"the answer {answer} is not what the API says: {result}")
        if self._world.ways.rounds > 1 and (trouble := self.conversations.has_trouble(name, answer, sent)):
            self._violated(trouble)
        if result["type"] == "succeeded" and not odd:
            text = "".join(block["text"] for block in result["message"]["content"] if block["type"] == "text")
            if answer.text != text:
                self._violated(f"the answer {answer} has not the API's text {text!r}")

    def _check_gate(self, seen: Seen, each: Row[Any]) -> None:
        """Check that nothing else of a run is sent before its canary has ended.

        An exception: a driver that found only a few rows may have sent them before another driver found more.
        """
        for batch in seen.batches.values():
            if batch.run_id != each.id:
                continue
            if batch.state in (BatchState.PLANNED, BatchState.DROPPED):
                self._let_go.discard(batch.id)
            elif each.gate in (None, batch.gate):
                self._let_go.add(batch.id)
            elif batch.id not in self._let_go:
                self._violated(f"batch {batch.id} is {batch.state}, while run {each.id} waits for its {each.gate}")

    def _check_budget(self, seen: Seen, each: Row[Any]) -> None:
        limit = each.job["limits"]["max_cost_usd"]
        of_run = {batch.id for batch in seen.batches.values() if batch.run_id == each.id}
        if limit is None or of_run & self._world.lost_batches or self._world.hidden:
            return
        paid = sum(
            self._books.cost(batch.api_id)
            for batch in self._books.batches.values()
            for mine in seen.batches.values()
            if mine.nonce == batch.nonce and mine.id in of_run
        )
        taken = sum(
            (sending.reserved_usd if sending.settled_usd is None else sending.settled_usd) or 0.0
            for sending in seen.sendings
            if sending.batch_id in of_run and sending.end not in (SendingEnd.REJECTED, SendingEnd.ABSENT)
        )
        if max(paid, taken) > limit + 1e-9:
            self._violated(f"run {each.id} has paid {paid} and reserved {taken}, and its limit is {limit}")
