"""Each value of a source is exact in the request and in the table, or is refused with the column's name."""

import base64
from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import orjson
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as pe
import pytest
from sqlalchemy import delete, select, update

from pipeline.errors import DatabaseError, RowProblem, SourceError
from pipeline.job.model import Job, Source
from pipeline.planning.known_rows import KnownRows
from pipeline.planning.plan import Plan
from pipeline.planning.verdict import Verdict
from pipeline.source import columnar, identity
from pipeline.source.frames import CHUNK_ROWS, unreadable
from pipeline.source.rows import Rows
from pipeline.state.tables import jobs, requests, stretches
from tests.conftest import World

POSTGRESQL_IS_LONG = True


def job_over(path: Path, prompt: str, **source: Any) -> Job:
    return Job.model_validate(
        {
            "name": "values",
            "source": {"path": str(path), "key": "id", **source},
            "request": {"model": "claude-haiku-4-5", "max_tokens": 2000, "prompt": prompt},
            "sink": {"table": "answers"},
            "canary": False,
        }
    )


def requests_of(job: Job) -> Iterator[tuple[str, str, bytes]]:
    """Key, prompt and row_hash of each row."""
    plan = Plan(job)
    plan.source.kinds()
    plan.quote(KnownRows(None, None))
    for chunk in plan.source.chunks():
        keys = identity.keys(chunk.frame, job.source.key)
        rows = identity.named_rows(chunk.frame, plan.source.columns)
        for key, row, row_hash in zip(keys, rows, plan.source.hashes(chunk), strict=True):
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


def test_a_late_field_is_in_the_prompt_of_its_row_only(tmp_path: Path) -> None:
    file = lines(tmp_path / "a.ndjson", *LATE)

    found = prompts(job_over(file, "{{ row | tojson }}"))

    assert found["99999"] == '{"id": 99999, "late": "yes", "text": "x"}'
    assert found["5004"] == '{"id": 5004, "text": "t"}'


def test_a_late_field_changes_only_the_hash_of_its_row(tmp_path: Path) -> None:
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


@pytest.mark.parametrize("large", [2**64, 2**64 + 1, -(2**63) - 2, 10**29 + 1, 10**320], ids=len_of)
def test_an_integer_of_any_size_is_exact_in_prompt_key_and_table(world: World, large: int) -> None:
    file = world.folder / "a.ndjson"
    lines(file, f'{{"id":{large},"n":{{"x":[{large}]}},"m":{large}}}', f'{{"id":{large + 1},"n":1,"m":2}}')
    job = job_over(file, "{{ id }} {{ n | tojson }} {{ m }}", keep=["n", "m"])

    world.run(job)

    row = world.answers("values")[str(large)]
    assert prompts(job)[str(large)] == f'{large} {{"x": [{large}]}} {large}'
    assert row["text"].startswith(f"[emulated] {large}"[:100])
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
        pytest.param('[{"id":1},\n{"id":2}]', r"one JSON document \(an array\).*one object per line", id="an array"),
        pytest.param('[{"id":1}]', r"one JSON document \(an array\)", id="an array on one line"),
        pytest.param('[\n  {\n "id": 1}]', r"one JSON document \(an array\)", id="an array in pretty print"),
        pytest.param('{\n  "id": 1\n}', "the JSON object on line 1 does not end there.*one line", id="pretty print"),
        pytest.param('{"id":1}\n{"id":NaN}', "line 2: this is not JSON.*no NaN and no Infinity: write null", id="NaN"),
        pytest.param(
            '{"id":1}\n{"id":"\\ud800"}',
            "line 2: this is not JSON.*escape gives only half of a character",
            id="a surrogate",
        ),
        pytest.param('{"id":1}\n{"id":1e400}', "line 2: this is not JSON", id="a number beyond a double"),
    ],
)
def test_json_that_is_not_ndjson_is_refused_with_its_kind(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(SourceError, match=said):
        prompts(job_over(lines(tmp_path / "a.ndjson", text), "{{ id }}"))


# -- files that differ -----------------------------------------------------------------------------------------------


def rows_in(folder: Path, *tables: pa.Table, **source: Any) -> Rows:
    for i, table in enumerate(tables):
        pq.write_table(table, folder / f"{i}.parquet")
    return Rows(Source(path=[str(folder)], key=["id"], **source))


def column_of(rows: Rows, name: str = "x") -> list[Any]:
    return [value for chunk in rows.chunks(["id", name]) for value in chunk.frame[name].to_list()]


@pytest.mark.parametrize(
    "stored",
    [
        pytest.param([pa.array(["a"]), pa.array(["a"], pa.large_string())], id="string and large_string"),
        pytest.param([pa.array(["a"]), pa.array(["a"]).dictionary_encode()], id="string and dictionary"),
        pytest.param([pa.nulls(1), pa.array(["a"]), pa.nulls(1)], id="null and string"),
        pytest.param([pa.array([1], pa.int32()), pa.array([1], pa.int64())], id="int32 and int64"),
        pytest.param([pa.array([1]), pa.array([1.0]), pa.array([None], pa.float64())], id="int and double"),
        pytest.param([pa.array([1.0]), pa.array([1])], id="double and int"),
        pytest.param([pa.array([1], pa.timestamp("ms")), pa.array([1000], pa.timestamp("us"))], id="units of time"),
        pytest.param([pa.array([["a"]]), pa.array([["a"]], pa.large_list(pa.large_string()))], id="kinds of lists"),
    ],
)
def test_columns_that_only_store_their_values_differently_are_equal(tmp_path: Path, stored: list[Any]) -> None:
    rows = rows_in(tmp_path, *(pa.table({"id": [i], "x": array}) for i, array in enumerate(stored)))

    values = [value for value in column_of(rows) if value is not None]

    assert len({(type(value), repr(value)) for value in values}) == 1
    assert rows.kinds(["x"]) == Rows(Source(path=[str(tmp_path / "1.parquet")], key=["id"])).kinds(["x"]) or isinstance(
        values[0], int
    )
    hashes = {h for c in rows.chunks(["x"]) for h in identity.row_hashes(c.frame, ["x"]) if c.frame["x"][0] is not None}
    assert len(hashes) == (2 if isinstance(stored[0].type, pa.TimestampType) else 1)


@pytest.mark.parametrize(
    ("stored", "said"),
    [
        pytest.param([pa.array([1]), pa.array(["1"])], "'x' is int64 in .* and string in .*1.parquet", id="text"),
        pytest.param([pa.array([1]), pa.array([1.5])], "1.parquet row 1: column 'x' is 1.5, but other files", id="1.5"),
        pytest.param([pa.array([1]), pa.array([2.0**60])], "1.parquet row 1: column 'x' is", id="a double with gaps"),
        pytest.param([pa.array([1.5]), pa.array([1.5], pa.float32())], "'x' is double in .* and float in", id="floats"),
    ],
)
def test_columns_whose_values_differ_are_refused_where_they_are_read(tmp_path: Path, stored: Any, said: str) -> None:
    rows = rows_in(tmp_path, *(pa.table({"id": [i], "x": array}) for i, array in enumerate(stored)))

    assert column_of(rows, "id") == [0, 1]
    with pytest.raises(SourceError, match=said):
        column_of(rows)


def test_integers_beyond_a_column_of_the_table_in_one_file_make_it_text(tmp_path: Path) -> None:
    tables = [pa.table({"id": [i], "x": pa.array([7], kind)}) for i, kind in enumerate((pa.int64(), pa.uint64()))]

    assert rows_in(tmp_path, *tables).kinds(["x"]) == {"x": "text"}


def test_a_duplicate_or_empty_column_name_is_refused_only_if_the_column_is_read(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("id,text,x,x,,\n1,a,2,3,4,5\n")

    assert prompts(job_over(file, "{{ text }}")) == {"1": "a"}
    with pytest.raises(SourceError, match="column 'x' occurs twice; rename one"):
        prompts(job_over(file, "{{ x }}"))
    with pytest.raises(SourceError, match="occurs twice"):
        prompts(job_over(file, "{{ row | tojson }}"))


# -- types of Parquet and Arrow --------------------------------------------------------------------------------------


def parquet(folder: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), folder / "a.parquet")
    return folder / "a.parquet"


FAR = pa.array([0, 400_000_000_000], pa.timestamp("s"))


@pytest.mark.parametrize(
    ("column", "good", "reason"),
    [
        pytest.param(FAR, "1970-01-01 00:00:00", "before year 1 or after year 9999", id="a year after 9999"),
        pytest.param(
            pa.array([0, 2**62], pa.timestamp("s")), "1970-01-01 00:00:00", "year 9999", id="more seconds than 64 bits"
        ),
        pytest.param(pa.array([1, 5_000_000], pa.date32()), "1970-01-02", "year 9999", id="a date after 9999"),
        pytest.param(pa.array([b"a", b"\xff"]), "a", "bytes that are no UTF-8 text", id="bytes that are no text"),
        pytest.param(
            pa.array([[("a", 1)], [("a", 1), ("a", 2)]], pa.map_(pa.string(), pa.int64())),
            '{"a":1}',
            "a map has one key twice",
            id="a map with a key twice",
        ),
    ],
)
def test_a_value_without_a_text_makes_its_row_invalid_and_no_key(
    tmp_path: Path, column: Any, good: str, reason: str
) -> None:
    file, table = tmp_path / "a.arrow", pa.table({"id": [1, 2], "x": column})
    with pa.ipc.new_file(file, table.schema) as out:
        out.write_table(table)
    plan = Plan(job_over(file, "{{ x }}"))
    (chunk,) = plan.source.chunks()
    one, other = plan.source.request_values(chunk.frame)

    assert orjson.loads(plan.builder.params(one).params)["messages"][0]["content"] == good
    with pytest.raises(RowProblem, match=reason):
        plan.builder.params(other)
    for named in ({"key": "x"}, {"keep": ["x"]}):
        with pytest.raises(SourceError, match=rf"column 'x' in a\.arrow row 2: .*{reason}.*; correct it"):
            prompts(job_over(file, "{{ id }}", **named))


def test_nanoseconds_are_printed_and_are_refused_where_a_table_would_cut_them(tmp_path: Path) -> None:
    file = parquet(tmp_path, id=[1, 2], x=pa.array([1_000, 1_001], pa.timestamp("ns")))

    assert prompts(job_over(file, "{{ x }}")) == {
        "1": "1970-01-01 00:00:00.000001",
        "2": "1970-01-01T00:00:00.000001001",
    }
    with pytest.raises(SourceError, match=r"column 'x' in a\.parquet row 2: .* nanoseconds"):
        prompts(job_over(file, "{{ id }}", keep=["x"]))


def test_a_type_without_a_text_is_refused_with_file_and_column_where_it_is_read(tmp_path: Path) -> None:
    opaque = pa.ExtensionArray.from_storage(pa.opaque(pa.binary(), "t", "v"), pa.array([b"x"]))
    file = parquet(tmp_path, id=[1], x=opaque)

    assert prompts(job_over(file, "{{ id }}")) == {"1": "1"}
    with pytest.raises(SourceError, match=r"a\.parquet: column 'x' is .* cast it to string in the file, or leave"):
        prompts(job_over(file, "{{ x }}"))


def test_a_panic_of_polars_is_reported_with_file_and_column() -> None:
    wide = pa.table({"x": pa.array([Decimal(1)], pa.decimal256(60, 2))})
    with pytest.raises(BaseException) as panic:  # noqa: PT011  # no Exception
        pl.from_arrow(wide)

    assert type(panic.value).__name__ == "PanicException"
    said = unreadable(panic.value, "a.parquet", "x")
    assert isinstance(said, SourceError)
    assert str(said).startswith("a.parquet: column 'x' cannot be read (")


class Keys(pe.KmsClient):  # type: ignore[misc]
    """A key service that hides nothing."""

    def wrap_key(self, key_bytes: bytes, master_key_identifier: str) -> bytes:
        return base64.b64encode(key_bytes)


@pytest.mark.parametrize("plaintext_footer", [False, True])
def test_an_encrypted_parquet_file_is_refused(tmp_path: Path, plaintext_footer: bool) -> None:
    table = pa.table({"id": [1], "text": ["a"]})
    keys = pe.EncryptionConfiguration(footer_key="f", column_keys={"k": ["text"]}, plaintext_footer=plaintext_footer)
    properties = pe.CryptoFactory(lambda _: Keys()).file_encryption_properties(pe.KmsConnectionConfig(), keys)
    with pq.ParquetWriter(tmp_path / "a.parquet", table.schema, encryption_properties=properties) as out:
        out.write_table(table)

    with pytest.raises(
        SourceError, match=r"a\.parquet: the Parquet file is encrypted, which is not supported; write it unencrypted"
    ):
        Rows(Source(path=[str(tmp_path)], key=["id"], where="text = 'a'"))


def test_rows_that_fit_into_no_batch_are_refused_by_the_footer_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columnar, "LONGEST_ROW", 1_000_000)
    pq.write_table(pa.table({"id": [1], "text": ["x" * 2_000_000]}), tmp_path / "a.parquet", compression="zstd")

    assert (tmp_path / "a.parquet").stat().st_size < 4_000
    with pytest.raises(
        SourceError, match=r"a\.parquet: column 'text' has 2,000,\d+ bytes per row on average, more than a batch"
    ):
        prompts(job_over(tmp_path / "a.parquet", "{{ text }}"))
    assert prompts(job_over(tmp_path / "a.parquet", "{{ id }}")) == {"1": "1"}


def test_times_of_spark_beyond_the_range_of_nanoseconds_are_exact(tmp_path: Path) -> None:
    times = [0, 253_402_214_400_000_000, None, -62_135_596_800_000_000, 1]
    table = pa.table({"id": [1, 2, 3, 4, 5], "x": pa.array(times, pa.timestamp("us"))})
    pq.write_table(table, tmp_path / "a.parquet", use_deprecated_int96_timestamps=True, row_group_size=2)

    job = job_over(tmp_path / "a.parquet", "{{ x or 'none' }}", keep=["x"])

    assert prompts(job) == {
        "1": "1970-01-01 00:00:00",
        "2": "9999-12-31 00:00:00",
        "3": "none",
        "4": "0001-01-01 00:00:00",
        "5": "1970-01-01 00:00:00.000001",
    }


# -- rows that were answered before conversions were exact -----------------------------------------------------------


def uuids(*values: bytes) -> Any:
    return pa.ExtensionArray.from_storage(pa.uuid(), pa.array(values, pa.binary(16)))


OLDER: dict[str, tuple[pa.Table | list[str], dict[str, object]]] = {
    "bytes that are text": (pa.table({"id": [1, 2], "x": [b"hello", b"a"]}), {"x": "aGVsbG8="}),
    "a UUID": (
        pa.table(
            {
                "id": [1, 2],
                "x": pa.ExtensionArray.from_storage(pa.uuid(), pa.array([bytes(16), b"x" * 16], pa.binary(16))),
            }
        ),
        {"x": "AAAAAAAAAAAAAAAAAAAAAA=="},
    ),
    "nanoseconds": (
        pa.table({"id": [1, 2], "x": pa.array([1_001, 1_000], pa.timestamp("ns"))}),
        {"x": "1970-01-01 00:00:00.000001001"},
    ),
    "NaN in a list": (pa.table({"id": [1, 2], "x": [[float("nan")], [1.0]]}), {"x": "[null]"}),
    "bytes in a structure": (pa.table({"id": [1, 2], "x": [{"a": b"x"}, {"a": b"y"}]}), {"x": '{"a":"eA=="}'}),
    "a time of the day": (
        pa.table({"id": [1, 2], "x": pa.array([1_000, 0], pa.time64("us"))}),
        {"x": "00:00:00"},
    ),
    "a large integer": (['{"id":1,"x":18446744073709551617}', '{"id":2,"x":3}'], {"x": 18446744073709551617.0}),
    "a late field": ([*(f'{{"id":{i},"x":1}}' for i in range(2, 5003)), '{"id":1,"x":1,"y":2}'], {"id": "1", "x": "1"}),
}


def write_older(folder: Path, content: Any) -> Path:
    if isinstance(content, list):
        return lines(folder / "a.ndjson", *content)
    pq.write_table(content, folder / "a.parquet")
    return folder / "a.parquet"


@pytest.mark.parametrize("name", OLDER)
def test_a_row_answered_with_an_inexact_value_is_kept_as_of_an_older_recipe(world: World, name: str) -> None:
    content, before = OLDER[name]
    late = name == "a late field"
    job = job_over(write_older(world.folder, content), "{{ row | tojson }}" if late else "{{ x }}")
    world.run(job)
    sent = world.accepted()
    older = identity.row_hashes(pl.DataFrame([before]), list(before))[0]
    with world.database.write() as conn:
        stored = update(requests).where(requests.c.key == "[1]")
        assert conn.execute(stored.values(row_hash=older, outcome_hash=older)).rowcount == 1
        conn.execute(delete(stretches))  # which that version did not have

    quote = Plan(job).quote(KnownRows(world.database, 1))
    world.run(job)

    assert quote.rows == {Verdict.KEPT: sent - 1, Verdict.KEPT_OLDER: 1}
    assert world.accepted() == sent
    world.run(job, refresh=True)
    assert world.accepted() == sent + 1
    assert Plan(job).quote(KnownRows(world.database, 1)).rows == {Verdict.KEPT: sent}


def test_a_row_in_flight_with_an_inexact_value_is_not_sent_again(world: World) -> None:
    job = job_over(write_older(world.folder, OLDER["bytes that are text"][0]), "{{ x }}")
    world.dies_at(job, "submitted")
    sent, older = world.accepted(), identity.row_hashes(pl.DataFrame({"x": ["aGVsbG8="]}), ["x"])[0]
    with world.database.write() as conn:
        conn.execute(update(requests).where(requests.c.key == "[1]").values(row_hash=older))

    world.run(job)
    world.run(job)

    assert world.accepted() == sent == 2
    assert world.statuses("values") == {"1": "succeeded", "2": "succeeded"}


def test_rows_that_are_known_by_inexact_keys_stop_the_run_before_anything_is_sent(world: World) -> None:
    file = lines(world.folder / "a.ndjson", '{"id":18446744073709551617}', '{"id":"b"}')
    job = job_over(file, "{{ id }}")
    world.run(job)
    sent = world.accepted()
    with world.database.write() as conn:
        here = requests.c.key == '["18446744073709551617"]'
        conn.execute(update(requests).where(here).values(key=orjson.dumps([float(2**64)]).decode()))
        conn.execute(delete(stretches))

    with pytest.raises(SourceError, match=r"inexact keys for this column, such as 1\.84467\d+e\+19; .* new names"):
        world.run(job)

    assert world.accepted() == sent


def test_a_key_of_a_type_that_was_bytes_is_refused_with_a_remedy(world: World) -> None:
    job = job_over(parquet(world.folder, id=[b"k1"], text=["a"]), "{{ text }}")
    world.run(job)
    with world.database.write() as conn:
        columns = conn.execute(select(jobs.c.columns)).scalar_one()
        conn.execute(update(jobs).values(columns={**columns, "key": {"id": "json"}}))

    with pytest.raises(DatabaseError, match=r"has the key id \(json\), the job now says id \(text\); give the job"):
        world.run(job)


# -- frames in memory ------------------------------------------------------------------------------------------------


class Thing:
    """A value of no type that anybody knows."""


def frame_job(frame: Any) -> Job:
    fields = {"model": "claude-haiku-4-5", "max_tokens": 10, "prompt": "{{ x }}"}
    source = {"frame": frame, "key": "id"}
    return Job.model_validate({"name": "values", "source": source, "request": fields, "sink": {"table": "answers"}})


@pytest.mark.parametrize(
    ("frame", "printed"),
    [
        pytest.param(pl.DataFrame({"id": [1], "x": [timedelta(hours=26)]}), "P1DT2H", id="a duration"),
        pytest.param(pl.DataFrame({"id": [1], "x": [b"a"]}), "a", id="bytes that are text"),
        pytest.param(
            pl.DataFrame({"id": [1], "x": pl.Series([UUID(int=10)], dtype=pl.Object)}), str(UUID(int=10)), id="a UUID"
        ),
        pytest.param(
            pl.DataFrame({"id": [1], "x": pl.Series([{"a": [2**70]}], dtype=pl.Object)}),
            '{"a":[1180591620717411303424]}',
            id="a structure of Python",
        ),
        pytest.param(pa.table({"id": [1], "x": uuids(UUID(int=10).bytes)}), str(UUID(int=10)), id="a UUID of Arrow"),
        pytest.param(
            pl.DataFrame({"id": [1], "x": ["a"]}, schema_overrides={"x": pl.Categorical}), "a", id="a category"
        ),
    ],
)
def test_a_value_of_a_frame_is_printed_exactly(frame: Any, printed: str) -> None:
    assert prompts(frame_job(frame)) == {"1": printed}


def test_a_value_of_a_frame_without_a_text_is_refused_with_its_column() -> None:
    frame = pl.DataFrame({"id": [1], "x": pl.Series([Thing()], dtype=pl.Object)})

    with pytest.raises(SourceError, match="column 'x' holds values of Python's type Thing, which have no exact text"):
        prompts(frame_job(frame))


def test_where_compares_bytes_that_are_text_as_text(tmp_path: Path) -> None:
    file = parquet(tmp_path, id=[b"k1"], text=["a"])

    assert prompts(job_over(file, "{{ text }}", where="id = 'k1'")) == {"k1": "a"}
