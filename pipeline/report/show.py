"""Format what is known of one row as lines of text. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import orjson

from pipeline.escapes import inline, json_text
from pipeline.job import json_values
from pipeline.report.quote import shortened
from pipeline.runner.show import REQUEST_IS, Shown


def lines(shown: Shown, *, ascii_only: bool = False) -> Iterator[str]:
    """Yield the lines of the command `show`. ascii_only: whether the request must be JSON in ASCII."""
    yield f"row      {shown.key}" + ("" if shown.place is None else f" ({inline(shown.place)})")
    yield from _fields(shown.source or {})
    if shown.row is None:
        yield "state    not known to the database: it has not been planned"
    else:
        yield f"state    {_state(shown.row)}"
    if shown.batch is not None:
        yield from _batch(shown.batch, shown.sendings)
    for problem in shown.problems:
        yield f"problem  {inline(problem)}"
    for turn in shown.turns:
        yield f"round {turn['round']}"
        yield from _fields({"answer": turn["message"].get("content"), "results": turn["results"]})
    if shown.request is not None and shown.request_is is not None:
        yield f"request  {REQUEST_IS[shown.request_is]}"
        yield json_text(shortened(shown.request), ascii_only=ascii_only, indent=True)
    for answer in shown.earlier:
        yield f"replaced {_when(answer['replaced_at'])}"
        yield from _fields(answer)
    if shown.answer is not None:
        yield f"answer   {_when(shown.answer['updated_at'])}"
        yield from _fields(shown.answer)


def _state(row: Mapping[str, Any]) -> str:
    attempts = f"{row['attempts']} attempt{'' if row['attempts'] == 1 else 's'}"
    before = f"; before: {row['outcome']}" if row["outcome"] not in (None, row["state"]) else ""
    number = f" in round {row['round']}" if row["round"] > 1 else ""
    return f"{row['state']} in run {row['run_id']}, {attempts} so far{number}{before}"


def _batch(batch: Mapping[str, Any], sent: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    why = "" if batch["problem"] is None else f": {inline(batch['problem'])}"
    yield f"batch    {batch['id']} {batch['state']}{why}, custom_id {batch['custom_id']}"
    for each in sent:
        problem = "" if each["problem"] is None else f": {inline(each['problem'])}"
        ids = ", ".join(each[name] for name in ("api_id", "request_id") if each[name])
        yield f"    sent {_when(each['started_at'])}, {each['end'] or 'end not known yet'}{problem}" + (
            f" ({ids})" if ids else ""
        )


def _when(time: Any) -> str:
    return f"{time:%Y-%m-%d %H:%M:%S} UTC"


def _fields(values: Mapping[str, Any]) -> Iterator[str]:
    """Yield each name with its value. Every further line of a value is indented; nulls are left out."""
    width = max((len(name) for name in values), default=0)
    for name, value in values.items():
        if value is not None:
            yield f"    {inline(name).ljust(width)}  " + _text(value).replace("\n", "\n" + " " * (width + 6))


def _text(value: Any) -> str:
    if isinstance(value, float):
        return orjson.dumps(value).decode()  # 0.0000305, and not 3.05e-05
    return json_values.dump(value) if isinstance(value, list | dict) else str(value)
