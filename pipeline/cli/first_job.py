"""A first job file for a data file."""

import os
import re
from pathlib import Path, PurePosixPath

import orjson
import polars as pl

from pipeline.errors import InputError
from pipeline.job import templates
from pipeline.job.model import Source
from pipeline.source.rows import Rows, lacks_key
from pipeline.storage import objects

_TEMPLATE = """\
# What to ask of each row of {file}. `batch-pipeline check {job_file}` shows the first request.
name: {name}

source:
  path: {path}
  key: {key}                # identifies a row: unique, never empty
  # where: "length(text) > 0"    # a SQL predicate: only these rows
  # keep: [column]                # source columns to carry into the answers table

request:
  model: {model}
  max_tokens: 300               # of an answer, at most; it bounds the cost of a run
  system: Answer in one or two plain sentences.
  prompt: |                     # Jinja2 over the columns of a row
    Summarize this record.
{prompt}

# output:
#   labels: [first, second]     # instead of free text: one of these

sink:
  table: {name}_answers         # made in the state database

limits:
  max_cost_usd: 5               # of a run, in US dollars: it stops before it costs more. Answers are bounded exactly,
                                # input by a 99% bound from a sample: in rare cases a run costs slightly more
  max_failed: 0                 # share of the rows that may fail before `run` exits with 1

# canary: {{rows: 20, max_failed: 0.2}}   # a new recipe's first rows go first; false: all at once
"""


def write_job_file(file: str, output: Path | None, model: str) -> Path:
    """Write a commented job file for a data file (a path, or a URL on object storage), and return where.

    The key is the first column that is unique and never empty. output: None writes beside the current folder's files,
    under the data file's name. model: that is asked. Raises InputError if the file exists already or no column can be
    the key.
    """
    stem = PurePosixPath(file).name.split(".")[0]
    job_file = output or Path(f"{stem}.yaml")
    if job_file.exists():
        raise InputError(f"{job_file} exists already; give another name by -o")
    source = Source(path=[file], key=["?"])
    rows = Rows(source)
    key = _key(rows)
    if key is None:
        raise InputError(
            f"{file}: no column is unique and never empty; write the job file by hand, with several as key"
        )
    shown = [name for name in rows.columns if name != key] or [key]
    text = _TEMPLATE.format(
        file=file,
        job_file=job_file,
        model=model,
        name=_name(stem),
        path=_yaml(file if objects.is_url(file) else os.path.relpath(file, job_file.parent)),
        key=_yaml(key),
        prompt="\n".join(f"    <{_tag(name)}>{_expression(name)}</{_tag(name)}>" for name in shown),
    )
    try:
        with open(job_file, "x", encoding="utf-8") as out:
            out.write(text)
    except OSError as exc:
        raise InputError(f"{job_file} cannot be written: {exc.strerror}") from exc
    return job_file


def _key(rows: Rows) -> str | None:
    hashes: dict[str, list[pl.Series]] = {name: [] for name in rows.columns}
    for chunk in rows.chunks(rows.columns):
        for name in list(hashes):
            column = chunk.frame[name]
            kind = column.dtype
            if kind.is_nested() or kind.is_float() or kind == pl.Object or lacks_key(column).any():
                del hashes[name]
            else:
                hashes[name].append(column.hash())
    return next((name for name, seen in hashes.items() if seen and pl.concat(seen).is_unique().all()), None)


def _name(stem: str) -> str:
    name = re.sub(r"[^a-z0-9]+", "_", stem.lower()).strip("_")[:50]
    return name if name[:1].isalpha() and not name.startswith("sqlite") else f"job_{name}".rstrip("_")


def _tag(column: str) -> str:
    return re.sub(r"\W+", "_", column).strip("_") or "value"


def _expression(column: str) -> str:
    odd = templates.is_jinja_name(column) or templates.is_method(column)
    plain = re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", column) and not odd
    value = column if plain else f"row[{orjson.dumps(column).decode()}]"
    return "{{ " + f"{value} if {value} is not none else ''" + " }}"


def _yaml(text: str) -> str:
    """A text as a YAML scalar: a JSON string is one."""
    return orjson.dumps(text).decode()
