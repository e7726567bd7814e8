"""What has the API accepted and answered? Recorded apart from the state database."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson
from sqlalchemy import select

from pipeline.answer.continuing import OUT_OF_ROUNDS
from pipeline.answer.outcome import Outcome
from pipeline.money.prices import LISTED
from pipeline.state.tables import batches, jobs, requests, runs
from pipeline.states import CONTINUED, RowState
from tests.proofs.simulation.constants import CREDIT
from tests.proofs.simulation.seen import IN_TRIAL, Seen, row_name

if TYPE_CHECKING:
    from tests.proofs.simulation.world import World


class Sent(NamedTuple):
    """One request that the API accepted for a row.

    recipe, text: those of job and row. round: 1 for the first request of a conversation. run: the run that sent it.
    edits: how often the row had been edited in the source.
    """

    api_id: str
    custom_id: str
    sha: str
    recipe: str
    text: str
    round: int
    run: int
    is_retry: bool
    edits: int


@dataclass(frozen=True)
class Accepted:
    """One batch of the pipeline that the API accepted."""

    api_id: str
    nonce: str
    requests: int
    account: str


class Books:
    """The requests that the API has accepted and answered, recorded independently of the state database."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self.batches: dict[str, Accepted] = {}
        self.rows: defaultdict[str, list[Sent]] = defaultdict(list)  #: by name, in the order of acceptance
        self.requests: dict[tuple[str, str], Sent] = {}
        self.asked: Counter[str] = Counter()  #: how often each call of a tool was asked for, by its id
        self._results: dict[str, dict[str, dict[str, Any]]] = {}
        self._params: dict[tuple[str, str], dict[str, Any]] = {}
        self._seen = 0

    def look(self) -> None:
        """Record newly accepted requests, and check whether each was due."""
        everything = self._world.emulator._store.all()
        new, self._seen = everything[self._seen :], len(everything)
        for batch in new:
            lines = [line.split(" ") for line in self._file(batch.id, "accepted").read_text().splitlines()]
            nonce = lines[0][1].partition("-")[0]
            if nonce != "other":
                self.batches[batch.id] = Accepted(batch.id, nonce, batch.requests, batch.workspace)
                self._enter(batch.id, nonce)

    def _enter(self, api_id: str, nonce: str) -> None:
        with self._world.shared.read() as conn:
            query = select(requests.c.key, requests.c.n).join(batches, batches.c.id == requests.c.batch_id)
            rows = conn.execute(query.where(batches.c.nonce == nonce).order_by(requests.c.key)).all()
            of_batch = select(runs.c.id, runs.c.retry, jobs.c.name).join(batches, batches.c.run_id == runs.c.id)
            of_job = of_batch.join(jobs, jobs.c.id == runs.c.job_id)
            run = conn.execute(of_job.where(batches.c.nonce == nonce)).one()
        keys = defaultdict(list)
        for row in rows:
            keys[f"{nonce}-{row.n}"].append(row_name(run.name, row.key))
        for line in self._file(api_id, "requests").read_bytes().splitlines():
            sha, custom_id, params = line.split(b" ", 2)
            fields = orjson.loads(params)
            turns = fields["messages"]
            recipe, _, text = turns[0]["content"].partition(" | ")
            number = 1 + sum(turn["role"] == "assistant" for turn in turns)
            named = keys[custom_id.decode()]
            edits = self._world.edits[named[0].rpartition(IN_TRIAL)[2]] if named else 0
            of_run = (run.id, run.retry is not None)
            sent = Sent(api_id, custom_id.decode(), sha.decode(), recipe, text, number, *of_run, edits)
            self.requests[api_id, sent.custom_id] = sent
            if self._world.ways.rounds > 1:  # the API removes them with the batch
                self._params[api_id, sent.custom_id] = fields
            if not named:
                self._world.violated(f"{api_id} has a request that no row names: {sent}")
            for key in keys[sent.custom_id]:
                self._world.rules.judge(key, self.rows[key], sent)
                self.rows[key].append(sent)

    def join(self, seen: Seen) -> None:
        """Record rows that have joined a request after the API had accepted it."""
        for row in seen.rows:
            batch = None if row.batch_id is None else seen.batches[row.batch_id]
            sent = None if batch is None else self.requests.get((batch.api_id, f"{batch.nonce}-{row.n}"))
            if sent is not None and sent not in self.rows[name := row_name(row.job, row.key)]:
                self.rows[name].append(sent)

    def _file(self, api_id: str, name: str) -> Path:
        return self._world.emulator._store.path(api_id, name)

    def read_results(self) -> None:
        """Read the results of newly ended batches, before they can be deleted."""
        for api_id in self.batches:
            self.results(api_id)

    def results(self, api_id: str) -> dict[str, dict[str, Any]] | None:
        """Return a batch's results by custom_id, without faults of the delivery; None while it runs."""
        if api_id not in self._results:
            if self._world.emulator._store.get(api_id).status != "ended":
                return None
            lines = [orjson.loads(line) for line in self._file(api_id, "results").read_bytes().split(b"\n")]
            self._results[api_id] = {line["custom_id"]: line["result"] for line in lines}
            self.asked.update(use["id"] for result in self._results[api_id].values() for use in uses_of(result))
        return self._results[api_id]

    def result(self, sent: Sent) -> dict[str, Any] | None:
        """Return the result of one request; None while its batch runs."""
        found = self.results(sent.api_id)
        return None if found is None else found[sent.custom_id]

    def status(self, sent: Sent) -> tuple[str, str | None]:
        """Return the status that a row has after a request, and the type of its error. Its batch must have ended."""
        result, most = self.result(sent) or {}, self._world.ways.rounds
        goes_on = result["type"] == "succeeded" and result["message"]["stop_reason"] in ("tool_use", "pause_turn")
        if goes_on and most > 1:
            return (CONTINUED, None) if sent.round < most else (RowState.TRUNCATED, OUT_OF_ROUNDS)
        return status_of(result)

    def params(self, sent: Sent) -> dict[str, Any]:
        """Return the params of a request. They are kept only in schedules with rounds."""
        return self._params[sent.api_id, sent.custom_id]

    def cost_of(self, sent: Sent) -> float:
        """Return the cost of the answer to one request, in US dollars."""
        return LISTED.cost(_used(self.result(sent) or {"type": "errored"})) or 0.0

    def is_there(self, api_id: str) -> bool:
        """Return whether the API has, or will have, the batch's results."""
        batch = self._world.emulator._store.get(api_id)
        return batch.deleted_us is None and batch.archived_us is None

    def cost(self, api_id: str) -> float:
        """Return the cost of all answers of a batch, in US dollars."""
        return sum(LISTED.cost(_used(result)) or 0.0 for result in (self.results(api_id) or {}).values())


def _used(result: Mapping[str, Any]) -> Outcome:
    if result["type"] != "succeeded":
        return Outcome("failed")
    message = result["message"]
    usage = message["usage"]
    return Outcome(
        "answered", model=message["model"], input_tokens=usage["input_tokens"], output_tokens=usage["output_tokens"]
    )


def uses_of(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the blocks of an answer that ask for a tool."""
    content = result["message"]["content"] if result["type"] == "succeeded" else ()
    return [block for block in content if block["type"] == "tool_use"]


def status_of(result: Mapping[str, Any]) -> tuple[str, str | None]:
    """Return the row's status that follows from a result, and the type of its error."""
    if result["type"] == "succeeded":
        stop = result["message"]["stop_reason"]
        if stop in ("end_turn", "stop_sequence"):
            return RowState.SUCCEEDED, None
        return (RowState.REFUSED, "refusal") if stop == "refusal" else (RowState.TRUNCATED, stop)
    if result["type"] == "errored":
        error = result["error"]["error"]
        return RowState.ERRORED, "billing_error" if error["message"] == CREDIT else error["type"]
    if result["type"] in ("canceled", "expired"):
        return result["type"], result["type"]
    return RowState.ERRORED, "unknown_result"
