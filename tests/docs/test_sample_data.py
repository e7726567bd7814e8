"""The sample data is what its README promises, awkward parts included."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from ruamel.yaml import YAML

SAMPLE_DATA = Path(__file__).parents[2] / "sample_data"
TICKET_COLUMNS = ["ticket_id", "account", "opened_at", "priority", "subject", "body", "true_label"]


@pytest.fixture(scope="module")
def documents() -> pl.DataFrame:
    return pl.read_parquet(SAMPLE_DATA / "documents.parquet")


@pytest.fixture(scope="module")
def tickets() -> list[dict[str, str]]:
    with (SAMPLE_DATA / "tickets.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, strict=True))


def test_there_are_500_documents_each_with_its_own_id_and_text(documents: pl.DataFrame) -> None:
    assert documents.schema == {"doc_id": pl.String, "module": pl.String, "text": pl.String}
    assert documents.height == 500
    assert documents["doc_id"].n_unique() == 500
    assert documents["text"].n_unique() == 500
    assert documents.null_count().row(0) == (0, 0, 0)


def test_documents_are_neither_trivial_nor_all_alike_in_length(documents: pl.DataFrame) -> None:
    lengths = documents["text"].str.len_chars()

    assert lengths.is_between(200, 6000).all()
    assert (lengths < 400).sum() > 50
    assert (lengths > 1200).sum() > 50


def test_a_document_id_begins_with_its_module(documents: pl.DataFrame) -> None:
    assert documents.select(pl.col("doc_id").str.starts_with(pl.col("module")).all()).item()


def test_documents_can_be_made_again_with_the_same_columns(documents: pl.DataFrame, tmp_path: Path) -> None:
    # Only the shape: the wording belongs to the Python version that runs the script.
    subprocess.run([sys.executable, SAMPLE_DATA / "make_documents.py", tmp_path / "again.parquet"], check=True)

    again = pl.read_parquet(tmp_path / "again.parquet")
    assert again.schema == documents.schema
    assert again.height == 500
    assert again["doc_id"].n_unique() == 500


def test_tickets_are_made_again_byte_for_byte(tmp_path: Path) -> None:
    subprocess.run([sys.executable, SAMPLE_DATA / "make_tickets.py", tmp_path / "again.csv"], check=True)

    assert (tmp_path / "again.csv").read_bytes() == (SAMPLE_DATA / "tickets.csv").read_bytes()


def test_there_are_200_tickets_with_unique_ids_in_order_of_time(tickets: list[dict[str, str]]) -> None:
    ids = [ticket["ticket_id"] for ticket in tickets]

    assert list(tickets[0]) == TICKET_COLUMNS
    assert len(set(ids)) == len(tickets) == 200
    assert ids == sorted(ids)
    assert ids[0] == "00017"
    assert all(len(ticket_id) == 5 for ticket_id in ids)
    assert [ticket["opened_at"] for ticket in tickets] == sorted(ticket["opened_at"] for ticket in tickets)
    assert {ticket["priority"] for ticket in tickets} == {"low", "normal", "high", "urgent"}


def test_each_ticket_but_one_has_the_label_that_a_person_would_give(tickets: list[dict[str, str]]) -> None:
    labels = [ticket["true_label"] for ticket in tickets]

    assert set(labels) == {"billing", "outage", "how_to", "bug", "feature_request", ""}
    assert [ticket["body"] for ticket in tickets if not ticket["true_label"]] == ["?"]
    assert all(labels.count(label) >= 30 for label in set(labels) - {""})


def test_tickets_are_utf8_without_byte_order_mark_and_with_crlf_between_records() -> None:
    raw = (SAMPLE_DATA / "tickets.csv").read_bytes()

    assert raw.startswith(b"ticket_id,")
    assert raw.endswith(b"\r\n")
    raw.decode("utf-8")


@pytest.mark.parametrize(
    "content",
    [
        pytest.param('"print"', id="quotes"),
        pytest.param('""Done""', id="doubled quotes"),
        pytest.param("\n\n", id="blank lines"),
        pytest.param("ends.\r\nLike", id="CRLF inside a field"),
        pytest.param("tabs\tand", id="tab"),
        pytest.param("first\u2028second\u2029third", id="line and paragraph separator"),
        pytest.param("a\u0085b", id="next line (C1)"),
        pytest.param("👩\u200d👩\u200d👧\u200d👦", id="emoji joined from several"),
        pytest.param("ラベル", id="Japanese"),
        pytest.param("发货地址", id="Chinese"),
        pytest.param("مرحبا", id="Arabic"),
        pytest.param("שלום", id="Hebrew"),
        pytest.param("Cafe\u0301", id="decomposed accent"),
        pytest.param("a̷̘͝", id="combining marks"),
        pytest.param("<script>", id="script tag"),
        pytest.param("<![CDATA[", id="XML"),
        pytest.param("</ticket>", id="the closing tag of our own prompt"),
        pytest.param("{{ customer.name }}", id="template braces"),
        pytest.param("{% if customer %}", id="template statement"),
        pytest.param("DROP TABLE", id="SQL"),
        pytest.param("C:\\Labels\\new", id="backslashes"),
        pytest.param("   \n", id="trailing blanks"),
    ],
)
def test_some_ticket_body_contains(content: str, tickets: list[dict[str, str]]) -> None:
    assert any(content in ticket["body"] for ticket in tickets)


def test_some_tickets_are_very_long_nearly_empty_or_look_like_a_formula(tickets: list[dict[str, str]]) -> None:
    sizes = [len(ticket["body"].encode()) for ticket in tickets]

    assert 25_000 < max(sizes) < 35_000
    assert min(sizes) == 1
    assert "" in {ticket["subject"] for ticket in tickets}
    assert "=SUM(A1)" in {ticket["subject"] for ticket in tickets}


def test_polars_reads_the_tickets_as_the_csv_module_does(tickets: list[dict[str, str]]) -> None:
    frame = pl.read_csv(SAMPLE_DATA / "tickets.csv", infer_schema=False, empty_string_is_null=False)
    scanned = pl.scan_csv(SAMPLE_DATA / "tickets.csv", infer_schema=False, empty_string_is_null=False).collect()

    assert frame.to_dicts() == tickets
    assert scanned.to_dicts() == tickets


@pytest.mark.parametrize("job", ["summarize_documents", "classify_tickets"])
def test_a_sample_job_names_columns_that_its_source_has(job: str) -> None:
    declared = YAML(typ="safe").load(SAMPLE_DATA / "jobs" / f"{job}.yaml")
    source = SAMPLE_DATA / "jobs" / declared["source"]["path"]

    columns = pl.scan_csv(source) if source.suffix == ".csv" else pl.scan_parquet(source)
    assert declared["name"] == job
    assert {declared["source"]["key"], *declared["source"]["keep"]} <= set(columns.collect_schema().names())
