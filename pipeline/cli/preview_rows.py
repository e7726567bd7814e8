"""Which rows does `preview` send, and what does it say about them?"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from anthropic import AsyncAnthropic
from rich.console import Console

from pipeline.answer.outcome import first_server_tool
from pipeline.api.realtime import Picked, PreviewRow, Realtime, stream
from pipeline.cli.preview_screen import FactsView, Screen, about
from pipeline.errors import JobError, RowProblem, SourceError
from pipeline.job import templates
from pipeline.job.model import Job
from pipeline.job.retrying import Retry
from pipeline.planning import counting, picking
from pipeline.planning.estimator import estimate
from pipeline.planning.key_checks import SHOWN
from pipeline.planning.plan import Plan
from pipeline.planning.quote import Quote
from pipeline.planning.verdict import Verdict
from pipeline.source import identity
from pipeline.source.rows import Chunk
from pipeline.text import count


def pick(plan: Plan, n: int, *, keys: Sequence[str] = (), sample: bool = False) -> Picked:
    """Return the first n rows that can be sent. Files that a batch would upload are part of the requests.

    keys: the rows with these keys instead of the first ones; sample: n rows of the whole source instead, the same ones
    each time. Raises SourceError if no row can be sent, JobError if the template cannot run at all.
    """
    found: list[PreviewRow] = []
    problems: list[str] = []
    left_out = 0
    n = len(keys) or n
    rows: Iterable[picking.Picked] = picking.all_rows(plan, plan.source.columns)
    if keys:
        rows = picking.of_keys(plan, keys, plan.source.columns)
    elif sample:
        rows = picking.sample(plan, n, plan.source.columns)
    for row in (_built(plan, *each) for each in rows):
        if isinstance(row, PreviewRow):
            found.append(row)
        else:
            left_out += 1
            problems += [row] if len(problems) < SHOWN else []
        if len(found) == n:
            break
    if found:
        return Picked(found, problems, left_out)
    if problems:
        more = f" (and {left_out - 1:,} more)" if left_out > 1 else ""
        raise SourceError(f"no row can be sent: {problems[0]}{more}")
    raise SourceError("there is no row to preview: the source is empty, or no row meets source.where")


def _built(plan: Plan, chunk: Chunk, i: int, key: str, values: dict[str, Any]) -> PreviewRow | str:
    """Return a row with its request, or the reason why it cannot be sent."""
    try:
        built = plan.builder.params(values, chunk.folder, inline_files=True)
        return PreviewRow(identity.shown(key), chunk.place(i), built)
    except RowProblem as exc:
        return f"{chunk.place(i)} cannot be sent: {exc}"
    except templates.TemplateProblem as exc:
        raise JobError(f"request.prompt: {exc}") from exc


def announcement(picked: Picked, job: Job) -> str:
    """Return one sentence that says what will be sent and what it costs."""
    quote = Quote.of(job, Realtime())
    quote.rows[Verdict.NEW] = len(picked.rows)
    for slot, row in enumerate(picked.rows):
        quote.put(slot, row.built, b"")
    said = f"{count(len(picked.rows), 'request')} through the Messages API now, at its full price"
    once = job.model_copy(update={"retry": Retry()})  # a live call is not retried
    found = estimate(once, quote, counts=counting.by_bytes(job, quote), before=None, queue=len(picked.rows))
    if found.money is None:
        said += f": no price is known for {found.unpriced}"
    else:
        said += (
            f" (not the batch price, which is half of it): {about(found.money.low)} at least, "
            f"{about(found.money.worst)} at worst, if every answer takes its max_tokens"
        )
    unbounded = first_server_tool(job.request.params)
    if unbounded is not None:
        said += f", plus what {unbounded} costs and reads at the API"
    if job.prices:
        said += "; `prices` of the job file are batch prices and do not apply here"
    return said


def show(client: AsyncAnthropic, picked: Picked, job: Job, console: Console) -> int:
    """Send the rows and draw their answers; return 0 if all succeeded, else 1. Closes the client.

    Raises InputError if no row could be sent, AccountStopped or ApiUnreachable if some rows could not.
    """
    return asyncio.run(stream(client, picked, job, Screen(console)))


def tell(client: AsyncAnthropic, picked: Picked, job: Job, each: Callable[[dict[str, Any]], None]) -> int:
    """Do as `show`, but call `each` with the facts of each row, in the order of the rows, instead of drawing."""
    return asyncio.run(stream(client, picked, job, FactsView(each)))
