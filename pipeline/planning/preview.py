"""Which rows does a preview send? Edge: files, SQL."""

from collections.abc import Iterable, Sequence
from typing import Any

from pipeline.api.realtime import Picked, PreviewRow
from pipeline.errors import JobError, RowProblem, SourceError
from pipeline.job import templates
from pipeline.planning import picking
from pipeline.planning.key_checks import SHOWN
from pipeline.planning.plan import Plan
from pipeline.source import identity
from pipeline.source.rows import Chunk


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
