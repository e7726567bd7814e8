"""The page of a job says what it answered, how good that is and what it cost, and a text on it stays a text."""

import re
import sqlite3
from contextlib import closing
from typing import Any

import pytest

from pipeline.errors import DatabaseError, InputError
from pipeline.job.model import Job
from pipeline.report.page.head import shown_words
from pipeline.report.page.page import MOST_BYTES, Wanted, report_page
from tests.conftest import World
from tests.quality.test_compare import GIVEN, both
from tests.quality.test_evaluate import SCHEMA, answered, change
from tests.quality.test_review_gold import said, verdicts
from tests.support.pages import Read, read

POSTGRESQL_IS_LONG = True
EVIL = '"><svg onload=alert(1)>'


def html(world: World, job: Job, **wanted: Any) -> str:
    return report_page(
        world.database,
        world.known(job.name),
        job,
        Wanted(**wanted),
        lambda *words: " ".join(["batch-pipeline", *words]),
    )


def page(world: World, job: Job, **wanted: Any) -> Read:
    return read(html(world, job, **wanted))


def failing(world: World, number: int, do: str, **fault: Any) -> None:
    """Let the request for one of the texts fail."""
    world.emulator.add_fault(on="item", do=do, match=f"Text number {number} ", times=1, **fault)


def rights(**labels: int) -> list[tuple[str, str | None, str]]:
    """So many rows of each label, whose answers are right."""
    return [(label, label, "succeeded") for label, rows in labels.items() for _ in range(rows)]


@pytest.fixture
def with_failures(world: World) -> Job:
    """A job of which two of five rows have failed."""
    failing(world, 1, "max_tokens")
    failing(world, 2, "error", error_type="invalid_request_error")
    job = world.job()
    world.run(job)
    return job


# -- what it says ----------------------------------------------------------------------------------------------------


def test_it_begins_with_the_verdict_the_next_command_and_four_figures(world: World, with_failures: Job) -> None:
    shown = page(world, with_failures).text

    assert "summaries model claude-haiku-4-5" in shown
    assert "3 of 5 rows are answered, 2 failed Next batch-pipeline errors summaries" in shown
    assert "Answered 3 60.0% of 5 rows Failed 2 40.0% of 5 rows Cost $" in shown
    assert "Accuracy \N{EN DASH} the job has no gold" in shown
    assert "succeeded 3 60.0% errored 1 20.0% truncated 1 20.0%" in shown


def test_failures_have_their_keys_and_the_command_that_mends_them(world: World, with_failures: Job) -> None:
    shown = page(world, with_failures).text

    assert (
        "1 50.0% truncated (max_tokens) the answer stopped at max_tokens For example r1 Allow longer answers:" in shown
    )
    assert "batch-pipeline retry summaries --status truncated --set request.max_tokens=200" in shown
    assert "The API refuses the request as it is: correct the job file; then: batch-pipeline run summaries" in shown


def test_the_accuracy_of_each_class_is_there_with_its_interval_and_the_confusions(world: World) -> None:
    job = answered(world, [*rights(a=30), *[("b", "a", "succeeded")] * 8, *rights(b=2)])

    shown = page(world, job).text

    assert "32 of 40 answers to rows with gold are right: 80.0% (65.2% to 89.5%)." in shown
    assert "b 10 20.0% 5.7% to 51.0% 100.0% 34.2% to 100.0% 0.33" in shown
    assert "Gold by answer gold \\ answer a b (failed) recall a 30 100.0% b 8 2 20.0%" in shown
    assert "b a 8 r030, r031, r032" in shown
    assert "r000 Input team blue text Text number 0. Answer label a gold label a" in shown


def test_it_says_whether_the_accuracy_reaches_that_of_the_canary(world: World) -> None:
    given = [*rights(a=20), *[("b", "a", "succeeded")] * 5]
    job = answered(world, given, canary={"rows": 20, "min_accuracy": 0.85})

    shown = page(world, job).text

    assert "The minimum of the canary: 85.0% is reached: at least 88.1% is shown (bound)" in shown


def test_gold_that_was_not_drawn_at_random_is_not_called_the_accuracy(world: World) -> None:
    job = answered(
        world, [("a", "a", "succeeded"), ("b", "b", "succeeded")], gold={"columns": {"label": "truth"}, "random": False}
    )

    shown = page(world, job).text

    assert "Right of chosen rows 100.0%" in shown
    assert "These rows were chosen, so this is not the accuracy of the job." in shown


def test_reviews_of_a_sample_by_label_are_weighed(world: World) -> None:
    job = answered(world, rights(a=10, b=10), gold="reviews")
    said(world, *verdicts("rrrrrrrrww", drawn="sample by label: a", weight=0.9))
    partly = page(world, job).text
    said(world, *verdicts("----------wwwwwwwwrr", drawn="sample by label: b", weight=0.1))
    weighed = page(world, job).text
    said(world, *verdicts("rrrrrrrrwwwwwwwwwwrr"))  # the same rows, chosen by hand, stay rows of the sample

    assert "are right; weighed by strata, of 90.0% of all answers 80.0% (" in partly
    assert "10 of 20 answers to rows with gold are right; weighed by strata, of all answers 74.0% (" in weighed
    assert "Accuracy 74.0%" in weighed
    assert page(world, job).text.count("74.0%") == weighed.count("74.0%")


def test_the_comparison_is_that_of_the_command(world: World) -> None:
    job = both(world, GIVEN)

    shown = page(world, job, sides=("job:other", "current")).text

    assert "Compared with job:other current current is better than the base 71 pairs" in shown
    assert "right: job:other 54 of 70" in shown
    assert "difference (\N{PLUS-MINUS SIGN}" in shown
    assert "label: job:other \N{RIGHTWARDS ARROW} current base side rows for example b a 12 r050, r051" in shown


def test_answers_are_bars_histograms_and_nulls_by_the_kind_of_their_column(world: World) -> None:
    job = world.job(output={"schema": SCHEMA})
    world.run(job)
    rows = [
        {"id": f"r{i}", "amount": None if i == 4 else 10.0 * i, "area": "north" if i else "south"} for i in range(5)
    ]
    change(world, "SET amount = :amount, area = :area WHERE id = :id", rows)

    shown = page(world, job).text

    assert "amount numbers" in shown
    assert "values 4 null 1 (20.0%) least 0 mean 15 most 30" in shown
    assert "area value rows north 4 80.0% south 1 20.0%" in shown


def test_tokens_batches_and_money_are_counted(world: World) -> None:
    job = world.job()
    world.run(job)

    shown = page(world, job).text

    assert "max_tokens is 100" in shown
    assert "cut at the limit 0" in shown
    assert "batches 1 requests 5 median time" in shown
    assert "run 1 $" in shown
    assert "saved by batches $" in shown
    assert "live calls would have cost" in shown


def test_equal_requests_are_money_saved(world: World) -> None:
    world.rows([{"id": f"r{i}", "text": "The same text."} for i in range(5)])
    job = world.job()
    world.run(job)

    assert "4 rows shared the request of another row" in page(world, job).text


def test_samples_have_their_input_from_the_source(world: World, with_failures: Job) -> None:
    shown = page(world, with_failures, rows=1).text

    assert "succeeded 1 of 3 rows r0 Input text Text number 0 is about the number 0. Answer text [emulated]" in shown
    assert "truncated 1 of 1 row r1 max_tokens: the answer stopped at max_tokens Input text Text number 1" in shown


def test_without_the_source_samples_have_no_input_and_the_page_says_so(world: World) -> None:
    job = world.job()
    world.run(job)
    (world.folder / "rows.csv").unlink()

    shown = page(world, job).text

    assert "The inputs could not be read from the source" in shown
    assert "[emulated]" in shown


def test_a_query_is_not_run_again_for_the_inputs(world: World) -> None:
    warehouse = world.folder / "warehouse.db"
    with closing(sqlite3.connect(warehouse)) as conn, conn:
        conn.execute("CREATE TABLE notes AS SELECT 'r1' AS id, 'A text.' AS text, 'red' AS team")
    source = {"query": "SELECT * FROM notes", "database": f"sqlite:///{warehouse}", "key": "id", "keep": ["team"]}
    job = Job.model_validate({**world.job().model_dump(), "source": source})
    world.run(job)
    warehouse.unlink()

    shown = page(world, job).text

    assert "The source is a query, which is not run again for their inputs" in shown
    assert "r1 Input team red Answer text [emulated]" in shown


def test_a_results_table_that_is_gone_is_named(world: World) -> None:
    job = world.job()
    world.run(job)
    schema = "" if world.database.is_sqlite else f"{world.database.default_schema}."
    with world.database.write() as conn:
        conn.exec_driver_sql(f"DROP TABLE {schema}answers")

    with pytest.raises(DatabaseError, match="table 'answers' cannot be read"):
        html(world, job)


def test_answers_of_a_model_without_a_price_are_counted(world: World) -> None:
    job = world.job(request={"model": "claude-haiku-4-5"})
    world.run(job)
    change(world, "SET cost_usd = NULL WHERE id = :id", [{"id": "r0"}])

    shown = page(world, job).text

    assert "without 1 answer of unknown price" in shown
    assert "saved by batches" not in shown


def test_an_open_run_says_so_far(world: World) -> None:
    job = world.job()
    world.run(job, detach=True)

    shown = page(world, job).text

    assert "So far 0 of 5 rows are answered" in shown
    assert "Next batch-pipeline collect summaries" in shown
    assert "0.0% of 5 rows so far" in shown


# -- which run -------------------------------------------------------------------------------------------------------


def test_a_run_alone_has_its_own_rows_and_its_own_cost(world: World) -> None:
    job = world.job()
    world.run(job, limit=2)
    world.run(job)

    of_job, of_run = page(world, job), page(world, job, run_id=1)

    assert "All 5 rows are answered" in of_job.text
    assert "runs 1 to 2" in of_job.text
    assert "summaries, run 1 model" in of_run.text
    assert "All 2 rows are answered" in of_run.text
    assert "run 2" not in of_run.text
    with pytest.raises(InputError, match=r"job summaries has no run 7 \(its runs: 1, 2\)"):
        html(world, job, run_id=7)


# -- what makes it safe to open and to send --------------------------------------------------------------------------


def evil(world: World) -> Job:
    """A job with a label, keys, texts and an error message that would do harm if a page took them for markup."""
    world.rows(
        [{"id": f"{EVIL}{i}", "text": f"\x1b[31m{EVIL}\u202e {i}", "truth": EVIL if i else "fine"} for i in range(4)]
    )
    world.emulator.add_fault(on="item", do="error", error_type=EVIL, message=EVIL, times=1)
    job = world.job(output={"labels": ["fine", EVIL]}, gold={"columns": {"label": "truth"}})
    world.run(job)
    return job


def test_a_label_that_looks_like_markup_is_text(world: World) -> None:
    shown = page(world, evil(world))

    assert {"svg", "script", "img", "a", "form", "iframe", "link", "base"} & {tag for tag, _ in shown.elements} == set()
    assert f"value rows {EVIL}" in shown.text or f" {EVIL} " in shown.text
    assert not [name for _, attributes in shown.elements for name in attributes if name.startswith("on")]


def test_control_characters_are_symbols(world: World) -> None:
    shown = page(world, evil(world)).text

    assert "\u241b[31m" in shown
    assert "\u27e6U+202E\u27e7" in shown
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", shown)


def test_no_text_stands_in_a_link_a_style_or_a_class(world: World) -> None:
    shown = page(world, evil(world))

    assert not shown.attributes("href")
    assert not shown.attributes("src")
    assert all(re.fullmatch(r"(--[a-z]+:-?[\d.]+%?;?)+", style) for style in shown.attributes("style"))
    classes = {name for names in shown.attributes("class") for name in names.split()}
    assert {name for name in classes if not re.fullmatch("[a-z-]+", name)} == set()
    assert EVIL not in " ".join([*shown.attributes("title"), *shown.attributes("data-name")])


def test_its_policy_allows_nothing_but_its_own_style(world: World) -> None:
    job = world.job()
    world.run(job)

    shown = page(world, job)

    assert {"http-equiv": "Content-Security-Policy", "content": (
        "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    )} in [attributes for _, attributes in shown.elements]  # fmt: skip
    assert "url(" not in shown.style
    assert "@import" not in shown.style


def test_without_texts_no_key_and_no_text_is_on_it(world: World) -> None:
    world.rows([{"id": f"secret{i}", "text": f"Secret number {i}.", "truth": "private"} for i in range(4)])
    world.emulator.add_fault(on="item", do="error", error_type="api_error", message="secret message", times=1)
    job = world.job(output={"schema": SCHEMA}, gold={"columns": {"area": "truth"}}, retry={"max_attempts": 1})
    world.run(job)

    with_texts, without = html(world, job), html(world, job, texts=False)

    assert "secret1" in with_texts
    assert "private" in with_texts
    assert not re.search("secret|private|emulated", without, re.IGNORECASE)
    assert "This page holds no keys and no texts of rows and answers." in without
    assert "This page holds keys and texts" in with_texts
    assert "errored (api_error)" in read(without).text


def test_without_texts_the_next_command_quotes_no_key() -> None:
    words = ["retry", "summaries", "--status", "errored", "--key", "secret1"]

    assert shown_words(words, texts=True) == words
    assert shown_words(words, texts=False) == ["status", "summaries"]
    assert shown_words(words[:4], texts=False) == words[:4]


def test_the_same_database_gives_the_same_bytes(world: World) -> None:
    job = evil(world)

    first = html(world, job)
    world.clock.advance(100_000)

    assert html(world, job) == first


def test_it_stays_below_a_megabyte_whatever_the_texts_are(world: World) -> None:
    labels = [f"label {i}" for i in range(40)]
    world.rows([{"id": f"r{i:03d}", "text": f"{i} " + '<&\u00fc">' * 700} for i in range(200)])
    job = world.job(output={"labels": labels}, request={"prompt": "Sort {{ text }}"})
    world.run(job)
    change(
        world,
        "SET label = :label, error_message = :text WHERE id = :id",
        [{"id": f"r{i:03d}", "label": labels[i % 40], "text": "&" * 4_000} for i in range(200)],
    )

    found = html(world, job, rows=100)

    assert 200_000 < len(found.encode()) < MOST_BYTES
    assert "Samples" in found
