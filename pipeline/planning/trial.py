"""What is a trial of a job: what does it ask otherwise, of which rows, and for how much money? Edge: files.

A trial is a job of its own in the state database, so it is planned, sent and collected as a job is, and the job itself
is not touched. Its rows are those of the job with the smallest hash of the key, so they are the same for each trial.
"""

import heapq
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import ValidationError

from pipeline.errors import InputError, SourceError
from pipeline.job.gold import refuse_seen
from pipeline.job.load import fill
from pipeline.job.model import Job, Request, Sink
from pipeline.job.name import with_trial
from pipeline.planning.job_source import JobSource
from pipeline.planning.selection import changed, parsed
from pipeline.quality.gold import GoldReader, RowsWithGold
from pipeline.request.build import RequestBuilder
from pipeline.sink.columns import ROW_HASH, ResultColumns
from pipeline.sink.table import ResultsTable
from pipeline.source import identity
from pipeline.source.rows import Chunk, Input
from pipeline.state.jobs import TrialRecord

SAMPLE = 400  # rows of a trial, if it does not say how many
SHARE_OF_LIMIT = 10  # a trial may cost a tenth of limits.max_cost_usd, if it does not say how much
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_FIELDS = ", ".join(f"request.{name}" for name in Request.model_fields)


@dataclass(frozen=True)
class Trial:
    """A trial as a person asks for it.

    changes: new values by field of the request, such as `request.model`. sample: the most rows. where: a SQL predicate
    over the source; None: all rows. gold_only: whether only rows with gold. max_cost_usd: its budget in US dollars;
    None: a tenth of limits.max_cost_usd. Raises InputError for a name or a budget that it cannot have.
    """

    name: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    sample: int = SAMPLE
    where: str | None = None
    gold_only: bool = False
    max_cost_usd: float | None = None

    def __post_init__(self) -> None:
        if self.max_cost_usd is not None and not 0 < self.max_cost_usd < math.inf:
            raise InputError(f"--max-cost-usd {self.max_cost_usd}: a budget is an amount of dollars above 0")
        if not _NAME.fullmatch(self.name) or self.name == "current" or self.name.endswith((".parquet", ".yaml")):
            raise InputError(
                f"--name {self.name}: a trial has a name of up to 63 letters, digits, '_', '-' and '.', which is not "
                "`current` and does not end in .parquet or .yaml"
            )

    @classmethod
    def of(cls, record: TrialRecord) -> "Trial":
        """Return the trial as it was begun, but for its budget, which each command gives."""
        return cls(record.name, record.changes, record.sample, record.where, record.gold_only)

    def asked(self, job: Job) -> Job:
        """Return the job that the trial asks: without gold and canary, with a budget and a table of its own.

        Raises InputError for a value that the request cannot have, and if the request would show gold to the model.
        """
        values = {name: fill(value, name, job.vars) for name, value in self.changes.items()}
        request = changed(job.model_copy(update={"gold": None, "canary": False}), values).request
        if job.gold is not None and job.gold.path is None:
            try:
                refuse_seen(job.gold, *request.named())
            except ValueError as exc:
                raise InputError(f"--set: {exc}") from exc
        limit = self.max_cost_usd
        if limit is None and job.limits.max_cost_usd is not None:
            limit = job.limits.max_cost_usd / SHARE_OF_LIMIT
        where = " AND ".join(f"({each}\n)" for each in (job.source.where, self.where) if each is not None)
        return job.model_copy(
            update={
                "request": request,
                "source": job.source.model_copy(update={"where": where or None}),
                "sink": _sink_of(job),
                "limits": job.limits.model_copy(update={"max_cost_usd": limit, "min_rows": None}),
                "gold": None,
                "canary": False,
            }
        )

    def record(self, asked: Job) -> TrialRecord:
        """Return what the database stores of the trial. asked: see `Trial.asked`."""
        return TrialRecord(
            name=self.name,
            changes=dict(self.changes),
            sample=self.sample,
            where=self.where,
            gold_only=self.gold_only,
            vars=dict(asked.vars),
            recipe=asked.recipe,
        )

    def keys(self, asked: Job, gold: RowsWithGold | None, sink: ResultsTable) -> frozenset[str]:
        """Return the keys (JSON) of the rows of the trial: those with the smallest hash among the rows that it may ask.

        asked: see `Trial.asked`. gold: of the job; None: it has none. sink: the results table of the job. Raises
        InputError if there is no such row, and SourceError if the source cannot be read.
        """
        if self.gold_only and gold is None:
            raise InputError("--gold-only: the job has no gold; name the columns with the right answers under gold")
        try:
            chosen = heapq.nsmallest(self.sample, self._ranked(asked, gold, sink))
        except SourceError as exc:
            if self.where is None or not str(exc).startswith("source.where: "):
                raise
            raise InputError(f"--where {self.where!r}: {str(exc).removeprefix('source.where: ')}") from exc
        if not chosen:
            which = " with gold" if self.gold_only else ""
            meets = "" if self.where is None else " that meets --where"
            raise InputError(f"the source has no row{which}{meets}, so there is nothing to try")
        return frozenset(key for _, key in chosen)

    def _ranked(self, asked: Job, gold: RowsWithGold | None, sink: ResultsTable) -> Iterator[tuple[bytes, str]]:
        source = JobSource(asked, RequestBuilder(asked))
        needs_gold = gold if self.gold_only else None
        columns = [*asked.source.key, *([] if needs_gold is None else needs_gold.source_columns)]
        for chunk in source.chunks(columns=list(dict.fromkeys(columns))):
            keys = source.keys(chunk)
            having = None if needs_gold is None else needs_gold.having(chunk, keys, sink)
            for i, key in enumerate(keys):
                if having is None or having[i]:
                    yield identity.key_rank(key), key


def change(pair: str) -> tuple[str, Any]:
    """Return field and value of a text such as `request.model=claude-haiku-4-5` or `request.prompt=@FILE`.

    The value is YAML, or the whole text of a file. Raises InputError.
    """
    name, equals, value = pair.partition("=")
    section, _, rest = name.partition(".")
    if not equals or section != "request" or rest.partition(".")[0] not in Request.model_fields:
        raise InputError(f"--set {pair}: write FIELD=VALUE, where FIELD is one of {_FIELDS}; a trial changes no other")
    if not value.startswith("@"):
        return name, parsed(pair, value)
    try:
        return name, Path(value[1:]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise InputError(f"--set {pair}: {value[1:]} cannot be read as UTF-8 text: {exc}") from exc


def _sink_of(job: Job) -> Sink:
    """Return the sink of the trials of a job: its table, with `_trials` at its end. Raises InputError."""
    name = job.sink.trials_table
    try:
        return Sink.model_validate({"table": name})
    except ValidationError as exc:
        raise InputError(f"sink.table: trials have their answers in {name}, which is too long; shorten it") from exc


class SampleSource(JobSource):
    """The source of a trial: only the rows of its sample, each with the row_hash that it has in the job itself."""

    def __init__(self, asked: Job, builder: RequestBuilder, job: Job, keys: frozenset[str]) -> None:
        """asked: see `Trial.asked`; builder: of its requests. job: the job itself. keys: of the sample, as JSON."""
        super().__init__(asked, builder)
        self._sampled = pl.Series(list(keys), dtype=pl.String).implode()
        self._of_job = JobSource(job, RequestBuilder(job))
        self.columns = list(dict.fromkeys([*self.columns, *self._of_job.columns]))

    def chunks(self, inputs: Sequence[Input] | None = None, *, columns: Sequence[str] | None = None) -> Iterator[Chunk]:
        """Yield the rows of the sample in chunks. The arguments are those of JobSource."""
        for chunk in super().chunks(inputs, columns=columns):
            places = self.keys(chunk).is_in(self._sampled).arg_true()
            if places.len() == chunk.frame.height:
                yield chunk
            elif places.len():
                yield Chunk(chunk.input, chunk.frame[places], [chunk.numbers[i] for i in places])

    def keeps(self, chunk: Chunk) -> list[str | None]:
        """Return the kept values of each row, as JSON, with its row_hash in the job itself."""
        hashes = zip(super().keeps(chunk), self._of_job.hashes(chunk), strict=True)
        return [f'{"{" if kept is None else kept[:-1] + ","}"{ROW_HASH}":"{each.hex()}"}}' for kept, each in hashes]


@dataclass(frozen=True)
class Sampled:
    """A trial that can be planned.

    trial: what the database stores of it. job: the job itself. columns: of the job's results table. gold: of the job;
    None: it has none. keys: of the rows, as JSON.
    """

    trial: TrialRecord
    job: Job
    columns: ResultColumns
    gold: GoldReader | None
    keys: frozenset[str]

    @property
    def name(self) -> str:
        """The name that the trial has among the jobs of the database."""
        return with_trial(self.job.name, self.trial.name)

    def source(self, asked: Job, builder: RequestBuilder) -> SampleSource:
        """Return the source of the trial. The arguments are those of SampleSource."""
        return SampleSource(asked, builder, self.job, self.keys)
