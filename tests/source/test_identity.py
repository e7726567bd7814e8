"""Keys, row_hashes and kept values do not change between versions, and different rows have different ones."""

from datetime import date, datetime
from decimal import Decimal
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.source import identity


def hash_of(row: dict[str, Any], schema: dict[str, Any] | None = None) -> bytes:
    frame = pl.DataFrame([row], schema=schema, orient="row")
    return identity.row_hashes(frame, list(row))[0]


# -- row hashes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "pinned"),
    [
        pytest.param({"subject": "Hi", "body": "The ship sank."}, "cc4748ab277b27b5756a64b631168399", id="two texts"),
        pytest.param({"body": ""}, "c24ac2c63143591ac3f1acfeb3ba3fa1", id="an empty text"),
        pytest.param({"body": None}, "7de2137302acd3f2e25a836297d13827", id="a null"),
        pytest.param({"body": "ä€😀\n\u2028"}, "5cdc005fa86d09793ca458aac2c0c44d", id="any script"),
        pytest.param(
            {"id": 17, "price": 1.5, "paid": True}, "90abde54d2b8173ef893b6a6c0501093", id="numbers and a truth"
        ),
        pytest.param({"day": date(2026, 11, 20)}, "398037ff6fb29c97ae6c8a2511d8dca7", id="a date"),
        pytest.param({"at": datetime(2026, 11, 20, 10, 30, 5)}, "80910102ab4b6303615aa41572b1132c", id="a time"),  # noqa: DTZ001  # files have none
        pytest.param({"tags": ["a", None, "b"]}, "3f292e637a7303eb5ec8eea2ad49d766", id="a list"),
        pytest.param({"raw": b"\x00\xff"}, "09b2d0367bf07b8bc9d6a9bbc408576c", id="bytes"),
    ],
)
def test_row_hashes_do_not_change_between_versions(row: dict[str, Any], pinned: str) -> None:
    # Where these change, every row of every job counts as changed and is sent and paid again: never by accident.
    assert hash_of(row).hex() == pinned


def test_rows_without_any_named_column_have_equal_hashes() -> None:
    hashes = identity.row_hashes(pl.DataFrame({"a": ["x", "y"]}), [])

    assert [h.hex() for h in hashes] == ["cae66941d9efbd404e4d88758ea67670"] * 2


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param({"x": "ab", "y": "c"}, {"x": "a", "y": "bc"}, id="a letter on the other side of the border"),
        pytest.param({"x": "a", "y": ""}, {"x": "", "y": "a"}, id="the value in the other column"),
        pytest.param({"x": "1:a\x1fy:0:", "y": ""}, {"x": "a", "y": ""}, id="a value that looks like our own marks"),
        pytest.param({"x": "a\x1fy:1:b", "y": "c"}, {"x": "a", "y": "b\x1fy:1:c"}, id="a separator in a value"),
        pytest.param({"x": "null", "y": "a"}, {"x": None, "y": "a"}, id="the word null and a null"),
        pytest.param({"x": "", "y": "a"}, {"x": None, "y": "a"}, id="an empty text and a null"),
        pytest.param({"x": None, "y": "a"}, {"x": "a", "y": None}, id="a null in the other column"),
        pytest.param({"x": "4:null", "y": "a"}, {"x": None, "y": "a"}, id="a tagged null"),
        pytest.param({"x": "a", "y": "b"}, {"x": "a", "y": "b "}, id="a blank at the end"),
        pytest.param({"x": "a", "y": "b"}, {"x": "A", "y": "b"}, id="case"),
        pytest.param({"x": "\u00e4", "y": "b"}, {"x": "a\u0308", "y": "b"}, id="composed and decomposed"),
        pytest.param({"x": "08123", "y": "b"}, {"x": "8123", "y": "b"}, id="a leading zero"),
    ],
)
def test_different_rows_have_different_hashes(one: dict[str, Any], other: dict[str, Any]) -> None:
    schema = {"x": pl.String, "y": pl.String}

    assert hash_of(one, schema) != hash_of(other, schema)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        pytest.param(17, "17", id="whole number"),
        pytest.param(-5, "-5", id="negative number"),
        pytest.param(1.5, "1.5", id="fraction"),
        pytest.param(True, "true", id="truth"),
        pytest.param(date(2026, 11, 20), "2026-11-20", id="date"),
    ],
)
def test_a_value_has_the_same_hash_in_csv_and_in_parquet(value: object, text: str) -> None:
    assert hash_of({"x": value, "y": "a"}) == hash_of({"x": text, "y": "a"})


def test_the_order_of_columns_does_not_matter_but_their_names_do() -> None:
    frame = pl.DataFrame({"b": ["1"], "a": ["2"]})

    assert identity.row_hashes(frame, ["a", "b"]) == identity.row_hashes(frame.select("a", "b"), ["b", "a"])
    assert identity.row_hashes(frame, ["a"]) != identity.row_hashes(frame.rename({"a": "c", "b": "d"}), ["c"])


def test_columns_that_are_not_named_do_not_change_the_hash() -> None:
    frame = pl.DataFrame({"body": ["x", "x"], "seen": ["1", "2"]})

    one, other = identity.row_hashes(frame, ["body"])

    assert one == other


def test_a_hash_is_the_same_wherever_in_a_chunk_the_row_stands() -> None:
    frame = pl.DataFrame({"a": ["x", None, "", "y"], "n": [1, 2, None, 4]})

    together = identity.row_hashes(frame, ["a", "n"])

    assert together == [identity.row_hashes(frame[i], ["a", "n"])[0] for i in range(frame.height)]
    assert len(set(together)) == 4
    assert {len(h) for h in together} == {16}


def test_a_row_has_the_same_hash_beside_long_and_short_ones() -> None:
    shorts = pl.DataFrame({"a": ["x", None, "", "Größe"], "n": [1, 2, None, -4], "b": [b"x", None, b"", b"\xff"]})
    long = pl.DataFrame({"a": ["y" * 10_000], "n": [5], "b": [b"z" * 10_000]})

    together = identity.row_hashes(pl.concat([shorts, long]), shorts.columns)

    assert together[:4] == identity.row_hashes(shorts, shorts.columns)
    assert together[4:] == identity.row_hashes(long, long.columns)
    assert len(set(together)) == 5


TEXT = st.none() | st.text(st.characters(codec="utf-8"), max_size=20)


@settings(deadline=None)  # machines differ
@given(rows=st.lists(st.fixed_dictionaries({"a": TEXT, "n": st.none() | st.integers(-9, 9), "ö": TEXT}), min_size=1))
def test_rows_joined_in_bulk_have_the_hashes_of_rows_joined_one_by_one(rows: list[dict[str, Any]]) -> None:
    frame = pl.DataFrame(rows, schema={"a": pl.String, "n": pl.Int64, "ö": pl.String})
    in_bulk = identity.row_hashes(frame, frame.columns)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(identity, "LONG_ROW", 0)
        one_by_one = identity.row_hashes(frame, frame.columns)

    assert in_bulk == one_by_one


@pytest.mark.parametrize(
    "name",
    [
        "*",
        pytest.param("^b.*$"),
        "a.b",
        "with space",
        "größe",
        "len",
    ],
)
def test_a_column_of_any_name_changes_the_hash(name: str) -> None:
    one, other = identity.row_hashes(pl.DataFrame({name: ["1", "2"], "b": ["x", "x"]}), [name, "b"])

    assert one != other


def test_every_value_inside_lists_and_structures_changes_the_hash() -> None:
    frame = pl.DataFrame({"tags": [["a", "b"], ["ab"], [], None], "s": [{"x": 1, "y": "a"}] * 4})

    assert len(set(identity.row_hashes(frame, ["tags"]))) == 4
    assert len(set(identity.row_hashes(frame, ["s"]))) == 1


# -- keys and kept values --------------------------------------------------------------------------------------------


def test_keys_are_json_of_the_key_columns_in_the_jobs_order() -> None:
    frame = pl.DataFrame({"id": [17, 18], "account": ["acme", 'quo"te'], "x": [1, 2]})

    assert identity.keys(frame, ["account", "id"]) == ['["acme",17]', '["quo\\"te",18]']
    assert identity.keys(frame, ["id"]) == ["[17]", "[18]"]


def test_keys_of_several_columns_are_distinct() -> None:
    frame = pl.DataFrame({"a": ["x,y", "x", '"', "08"], "b": ["z", "y,z", "", "8"]})

    assert len(set(identity.keys(frame, ["a", "b"]))) == 4


def test_a_key_is_shown_as_people_write_it() -> None:
    assert identity.shown('["acme",17]') == "acme,17"
    assert identity.shown('["08123"]') == "08123"


@pytest.mark.parametrize(
    ("values", "keys"),
    [
        pytest.param(pl.Series([date(2026, 11, 20)]), ['["2026-11-20"]'], id="dates"),
        pytest.param(pl.Series([Decimal("1.50")]), ['["1.50"]'], id="decimals"),
        pytest.param(pl.Series([b"k1"]), ['["k1"]'], id="bytes that are text"),
        pytest.param(pl.Series([2**63 + 1], dtype=pl.UInt64), ["[9223372036854775809]"], id="large numbers"),
        pytest.param(pl.Series(["ä\n"]), ['["ä\\n"]'], id="any text"),
        pytest.param(pl.Series([True]), ["[true]"], id="truths"),
    ],
)
def test_keys_may_be_of_any_kind(values: pl.Series, keys: list[str]) -> None:
    assert identity.keys(pl.DataFrame({"k": values}), ["k"]) == keys


def test_kept_values_are_json_under_the_names_of_the_results_table() -> None:
    frame = pl.DataFrame({"opened": [date(2026, 11, 20), None], "status": ["new", ""], "x": [1, 2]})

    kept = identity.kept(frame, {"opened": "opened", "status": "ticket_status"})

    assert kept == ['{"opened":"2026-11-20","ticket_status":"new"}', '{"opened":null,"ticket_status":""}']


def test_without_kept_columns_each_row_has_none() -> None:
    assert identity.kept(pl.DataFrame({"a": [1, 2]}), {}) == [None, None]
