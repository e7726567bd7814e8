"""What does `preview` say about the rows that it sends, and how does it show their answers?"""

import asyncio
from collections.abc import Callable
from typing import Any

from anthropic import AsyncAnthropic
from rich.console import Console

from pipeline.answer.outcome import first_server_tool
from pipeline.api.realtime import Picked, Realtime, stream
from pipeline.cli.preview_screen import FactsView, Screen, about
from pipeline.job.model import Job
from pipeline.job.retrying import Retry
from pipeline.planning import counting
from pipeline.planning.estimator import estimate
from pipeline.planning.quote import Quote
from pipeline.planning.verdict import Verdict
from pipeline.text import count


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
