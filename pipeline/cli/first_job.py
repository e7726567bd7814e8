"""What does `init` write into a first job file?"""

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
# What to ask about each row of {file}. `batch-pipeline check {job_file}` shows the first request.
name: {name}

source:
  path: {path}
  key: {key}                # identifies a row: unique, never empty
  # where: "length(text) > 0"    # a SQL predicate: only these rows
  # keep: [column]                # source columns to copy into the answers table

request:
  model: {model}
  max_tokens: 300               # the most that an answer may have; it bounds the cost of a run
  system: Answer in one or two plain sentences.
  prompt: |                     # Jinja2 over the columns of a row
    Summarize this record.
{prompt}

# output:
#   labels: [first, second]     # the answer is one of these, not free text

sink:
  table: {name}_answers         # the table of the state database for the answers

limits:
  max_cost_usd: 5               # US dollars: a run stops before it costs more. The bound is exact for answers; for
                                # input it is a 99% bound from a sample: in rare cases a run costs slightly more
  max_failed: 0                 # `run` exits with 1 when a larger share of the rows fails

# canary: {{rows: 20, max_failed: 0.2}}   # the first rows of a new recipe are sent first; false: all at once
"""


def write_job_file(file: str, output: Path | None, model: str) -> Path:
    """Write a commented job file for a data file and return its path.

    file: a path, or a URL on object storage. Its first column that is unique and never empty becomes the key. output:
    None for the name of the data file with .yaml, in the current folder. Raises InputError if the job file already
    exists, or if no column can be the key.
    """
    stem = PurePosixPath(file).name.split(".")[0]
    job_file = output or Path(f"{stem}.yaml")
    if job_file.exists():
        raise InputError(f"{job_file} already exists; give another name with -o")
    source = Source(path=[file], key=["?"])
    rows = Rows(source)
    key = _first_key_column(rows)
    if key is None:
        raise InputError(
            f"{file}: no column is unique and never empty; write the job file by hand, with several columns as key"
        )
    shown = [name for name in rows.columns if name != key] or [key]
    text = _TEMPLATE.format(
        file=file,
        job_file=job_file,
        model=model,
        name=_job_name(stem),
        path=_yaml_text(file if objects.is_url(file) else os.path.relpath(file, job_file.parent)),
        key=_yaml_text(key),
        prompt="\n".join(f"    <{_tag(name)}>{_expression(name)}</{_tag(name)}>" for name in shown),
    )
    try:
        with open(job_file, "x", encoding="utf-8") as out:
            out.write(text)
    except OSError as exc:
        raise InputError(f"{job_file} cannot be written: {exc.strerror}") from exc
    return job_file


def _first_key_column(rows: Rows) -> str | None:
    """Return the first column whose values are unique and never empty; None if there is none."""
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


def _job_name(stem: str) -> str:
    """Return a name that a job and, with a suffix, its table can have."""
    name = re.sub(r"[^a-z0-9]+", "_", stem.lower()).strip("_")[:50]
    return name if name[:1].isalpha() and not name.startswith("sqlite") else f"job_{name}".rstrip("_")


def _tag(column: str) -> str:
    """Return the name of the XML-like tag that encloses the column's value in the prompt."""
    return re.sub(r"\W+", "_", column).strip("_") or "value"


def _expression(column: str) -> str:
    """Return the Jinja expression that prints the column's value, and nothing for a null."""
    odd = templates.is_jinja_name(column) or templates.is_method(column)
    plain = re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", column) and not odd
    value = column if plain else f"row[{orjson.dumps(column).decode()}]"
    return "{{ " + f"{value} if {value} is not none else ''" + " }}"


def _yaml_text(text: str) -> str:
    """Return a text as a YAML scalar. A JSON string is one."""
    return orjson.dumps(text).decode()
