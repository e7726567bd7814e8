"""Jobs of other kinds than a summary, each compared with a summary of the same rows."""

from __future__ import annotations

import json
from collections.abc import Iterator

from harness import HEADER, SUMMARY, Bench, Kind, Line, Measurement, below, median_of, record
from harness import measure as measured

ROWS = 100_000  # for which the target is defined
TIMES = 1.5

_ANSWER = {"title": "A title", "topic": "invoices", "urgent": False, "pages": 3, "amount": 12.5, "sender": "harbour"}
_ANSWER |= {"words": ["parcel", "label"], "language": "en"}
_TYPES = {str: "string", bool: "boolean", int: "integer", float: "number"}


def _property(value: object) -> dict[str, object]:
    if isinstance(value, list):
        return {"type": "array", "items": {"type": "string"}}
    return {"type": _TYPES[type(value)]}


_SCHEMA = {
    "type": "object",
    "properties": {name: _property(value) for name, value in _ANSWER.items()},
    "required": list(_ANSWER),
    "additionalProperties": False,
}
_EXAMPLES = [{"role": role, "content": text} for role, text in [("user", "<t>A</t>"), ("assistant", "billing")] * 3]
_FILTERS = """\
  prompt: |
    {{ title | upper | truncate(60) }}
    {% for part in body.split(". ")[:20] %}{% if part %}- {{ part | trim | replace("&", "and") }}
    {% endif %}{% endfor %}"""

KINDS = {
    "labels": Kind(
        SUMMARY.request, "output: {labels: [billing, outage, how_to]}\n", '{"label":"billing"}', "label = 'billing'"
    ),
    "schema of 8 properties": Kind(
        SUMMARY.request, f"output: {{schema: {json.dumps(_SCHEMA)}}}\n", json.dumps(_ANSWER), "pages = 3"
    ),
    "few-shot": Kind(f"  messages: {json.dumps(_EXAMPLES)}\n{SUMMARY.request}"),
    "filters and loops": Kind(_FILTERS),
}


def measure(bench: Bench) -> Iterator[Line]:
    """Measure a summary and each of KINDS over the same Parquet file."""
    rows = bench.options.kind_rows
    print(f"{HEADER}   of jobs of several kinds")
    plain = _median(bench, "summary", SUMMARY, rows)
    for name, kind in KINDS.items():
        run = _median(bench, name, kind, rows)
        times = run.client.wall_seconds / plain.client.wall_seconds
        shown = f"{times:.2f} times the time of a summary ({run.rows_per_second:,.0f} rows/s)"
        judged = rows == ROWS
        yield below(f"{name}, {rows:,} rows, Parquet", times, shown, TIMES, f"less than {TIMES} times", judged=judged)


def _median(bench: Bench, name: str, kind: Kind, rows: int) -> Measurement:
    source = bench.rows(rows, "parquet")
    run = median_of(
        lambda: measured(bench, "kinds", "pipeline", source, rows, kind=kind),
        bench.options.repeat,
        lambda each: each.client.wall_seconds,
    )
    print(name)
    return record(bench, run)
