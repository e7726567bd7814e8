"""Show the estimates of several models for one job as a table, with a sentence for each thing to know. Pure."""

from collections.abc import Iterator, Sequence

from pipeline.job import templates
from pipeline.job.model import Job
from pipeline.planning.by_model import ModelEstimate
from pipeline.planning.past import Past
from pipeline.text import count, money, short_number, table_lines

_HEADINGS = ["MODEL", "TOKENS", "LONGEST", "READS", "AT LEAST", "EXPECTED", "AT WORST", "DOES THE JOB"]


def model_lines(found: Sequence[ModelEstimate], job: Job, before: Past | None) -> Iterator[str]:
    """Yield a line for each model, and below them why models cannot do the job, and warnings.

    found: by rank, not empty. before: the job's past answers; None: none.
    """
    said = found[0].estimate
    equal = f" in {count(said.requests, 'request')}" if said.requests != said.rows else ""
    yield f"rows     {said.rows:,} of the source{equal}, as if none had an answer"
    counted = max(each.estimate.input_tokens.sampled for each in found)
    how = f"the API counted {count(counted, 'request')} for each model" if counted else "the API did not count"
    yield f"input    tokens a request, by {count(found[0].sampled, 'sampled row')}; {how}"
    if before is None:
        yield "output   not known before the first answers: at least one token, at worst max_tokens"
    else:
        yield f"output   by {before.answers:,} past answers of this job; another model may write more or less"
    if templates.is_template(job.request.model):
        yield "model    request.model chooses a model by row; here each model is asked for all rows"
    yield ""
    yield from table_lines(_HEADINGS, [_row(each) for each in found], right=range(1, 7))
    notes = [note for each in found for note in _notes(each)]
    unpriced = dict.fromkeys(each.estimate.unpriced for each in found if each.estimate.unpriced is not None)
    if unpriced:
        notes.append(
            f"unpriced no batch price is known for {', '.join(unpriced)}; give one under prices in the job file"
        )
    if any(each.own for each in found):
        notes.insert(0, "* the model of the job")
    if any(not each.estimate.input_tokens.sampled for each in found):
        notes.insert(0, "~ estimated from bytes, the API did not count")
    if notes:
        yield ""
    yield from dict.fromkeys(notes)


def next_model(found: Sequence[ModelEstimate]) -> str | None:
    """Return the model that a trial should ask: the cheapest other one that does the job; None if there is none."""
    return next((each.model for each in found if each.does_the_job and not each.own), None)


def _row(each: ModelEstimate) -> list[str]:
    said, about = each.estimate, "" if each.estimate.input_tokens.sampled else "~"
    costs = ["unpriced", "", ""]
    if said.money is not None:
        expected = "?" if said.money.expected is None else money(said.money.expected)
        costs = [money(said.money.low), expected, money(said.money.worst)]
    return [
        each.model + ("*" if each.own else ""),
        f"{about}{said.input_tokens.mean:,.0f}",
        f"{about}{each.longest:,}",
        short_number(each.window),
        *costs,
        "no" if not each.does_the_job else "yes" if each.checked else "?",
    ]


def _notes(each: ModelEstimate) -> Iterator[str]:
    """Yield what to know of a model beside its line."""
    for reason in each.cannot:
        yield f"cannot   {reason if each.model in reason else f'{each.model}: {reason}'}"
    if each.too_long:
        rows = f"{each.too_long:,} of {count(each.sampled, 'sampled row')}"
        yield f"cannot   {each.model}: it reads {each.window:,} tokens, and {rows} have more"
    for warning in each.warnings:
        yield f"warning  {warning}"
