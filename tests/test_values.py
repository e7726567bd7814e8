"""What is in a source is in the request and in the table, exactly, or it is refused with the column's name."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pytest

from pipeline import identity
from pipeline.errors import SourceError
from pipeline.frames import CHUNK_ROWS
from pipeline.job import Job
from pipeline.known import Lookup
from pipeline.plan import Plan
from tests.conftest import World

POSTGRESQL_IS_LONG = True


def job_over(path: Path, prompt: str, **source: Any) -> Job:
    return Job.model_validate(
        {
            "name": "values",
            "source": {"path": str(path), "key": "id", **source},
            "request": {"model": "claude-haiku-4-5", "max_tokens": 100, "prompt": prompt},
            "sink": {"table": "answers"},
            "canary": False,
        }
    )


def requests_of(job: Job) -> Iterator[tuple[str, str, bytes]]:
    """Key, prompt and row_hash of each row."""
    plan = Plan(job)
    plan.kinds()
    plan.quote(Lookup(None, None))
    for chunk in plan.rows.chunks(plan.columns):
        keys = identity.keys(chunk.frame, job.source.key)
        rows = identity.named_rows(chunk.frame, plan.columns)
        for key, row, row_hash in zip(keys, rows, plan.hashes(chunk), strict=True):
            params = orjson.loads(plan.builder.params(row, chunk.folder).params)
            yield identity.shown(key), params["messages"][0]["content"], row_hash


def prompts(job: Job) -> dict[str, str]:
    return {key: prompt for key, prompt, _ in requests_of(job)}


def len_of(number: int) -> str:
    return f"{len(str(number))} digits, {number % 10}"


def lines(path: Path, *objects: dict[str, Any] | str) -> Path:
    """An NDJSON file of these objects."""
    path.write_text("\n".join(one if isinstance(one, str) else orjson.dumps(one).decode() for one in objects))
    return path


# -- NDJSON: fields and numbers --------------------------------------------------------------------------------------

LATE = [*({"id": i, "text": "t"} for i in range(CHUNK_ROWS + 5)), {"id": 99999, "text": "x", "late": "yes"}]


def test_a_field_that_only_a_late_object_has_is_in_its_prompt_and_in_no_other(tmp_path: Path) -> None:
    file = lines(tmp_path / "a.ndjson", *LATE)

    found = prompts(job_over(file, "{{ row | tojson }}"))

    assert found["99999"] == '{"id": 99999, "late": "yes", "text": "x"}'
    assert found["5004"] == '{"id": 5004, "text": "t"}'


def test_a_late_field_counts_in_the_hash_of_its_row_alone(tmp_path: Path) -> None:
    job = job_over(lines(tmp_path / "a.ndjson", *LATE), "{{ row | tojson }}")
    before = {key: row_hash for key, _, row_hash in requests_of(job)}

    lines(tmp_path / "a.ndjson", *LATE[:-1], {**LATE[-1], "late": "no"})
    after = {key: row_hash for key, _, row_hash in requests_of(job)}

    assert {key for key in before if before[key] != after[key]} == {"99999"}
    assert before["1"] == identity.row_hashes(pl.DataFrame({"id": [1], "text": ["t"]}), ["id", "text"])[0], (
        "as before such fields were read"
    )


def test_a_late_field_may_be_named(tmp_path: Path) -> None:
    file = lines(tmp_path / "a.ndjson", *LATE)

    found = prompts(job_over(file, "{{ text }} {{ late }}", keep=["late"], where="late IS NOT NULL"))
    kept = prompts(job_over(file, "{{ row | tojson }}", keep=["late"]))

    assert found == {"99999": "x yes"}
    assert kept["99999"] == '{"id": 99999, "late": "yes", "text": "x"}'
    with pytest.raises(SourceError, match=r"column 'latte', .*\(it has: id, text, late\); did you mean 'late'"):
        prompts(job_over(file, "{{ text }} {{ latte }}"))


@pytest.mark.parametrize("large", [2**64, 2**64 + 1, -(2**63) - 2, 10**29 + 1, 10**400], ids=len_of)
def test_an_integer_of_any_size_stands_in_prompt_key_and_table_as_in_the_file(world: World, large: int) -> None:
    file = world.folder / "a.ndjson"
    lines(file, f'{{"id":{large},"n":{{"x":[{large}]}},"m":{large}}}', f'{{"id":{large + 1},"n":1,"m":2}}')
    job = job_over(file, "{{ id }} {{ n | tojson }} {{ m }}", keep=["n", "m"])

    world.run(job)

    row = world.answers("values")[str(large)]
    assert row["text"] == f'[emulated] {large} {{"x": [{large}]}} {large}'
    assert row["m"] == str(large)
    assert row["n"] == f'{{"x":[{large}]}}'
    assert set(world.answers("values")) == {str(large), str(large + 1)}


def test_a_number_of_more_digits_than_python_reads_is_refused_with_its_line(tmp_path: Path) -> None:
    file = lines(tmp_path / "a.ndjson", {"id": 1}, f'{{"id":{"7" * 5000}}}')
    with pytest.raises(SourceError, match=r"a\.ndjson line 2: a number is too large to be read .* put it into quotes"):
        prompts(job_over(file, "{{ id }}"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param('[{"id":1},\n{"id":2}]', r"one JSON document \(an array\).*one object a line", id="an array"),
        pytest.param('[{"id":1}]', r"one JSON document \(an array\)", id="an array on one line"),
        pytest.param('[\n  {\n "id": 1}]', r"one JSON document \(an array\)", id="an array in pretty print"),
        pytest.param('{\n  "id": 1\n}', "the JSON object on line 1 does not end there.*one line", id="pretty print"),
        pytest.param('{"id":1}\n{"id":NaN}', "line 2: this is not JSON.*no NaN and no Infinity: write null", id="NaN"),
        pytest.param('{"id":1}\n{"id":"\\ud800"}', "line 2: this is not JSON.*half a character", id="a surrogate"),
        pytest.param('{"id":1}\n{"id":1e400}', "line 2: this is not JSON", id="a number beyond a double"),
    ],
)
def test_json_that_is_no_ndjson_is_named_as_what_it_is(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(SourceError, match=said):
        prompts(job_over(lines(tmp_path / "a.ndjson", text), "{{ id }}"))
