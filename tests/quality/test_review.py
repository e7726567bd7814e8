"""`review` gives answers to people in a spreadsheet, and stores what they say, whatever that does to the file."""

import csv
import io
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import xlsxwriter
from sqlalchemy import text

from pipeline.errors import DatabaseError, InputError
from pipeline.job.model import Job
from pipeline.quality.review_export import ExportedReviews, Wanted, export_reviews
from pipeline.quality.review_import import ImportedReviews, import_reviews
from pipeline.quality.sheets import Line, read_sheet
from pipeline.quality.statistics import sign_test
from pipeline.sink.reviews import Review, ReviewsTable
from pipeline.sink.table import ResultsTable
from tests.conftest import World
from tests.quality.test_evaluate import answered, change

POSTGRESQL_IS_LONG = True
ANSWERS = [("a", "a", "succeeded"), ("a", "b", "succeeded"), ("b", "b", "succeeded"), ("b", None, "truncated")]
SCHEMA = {
    "type": "object",
    "properties": {
        "amount": {"type": ["number", "null"]},
        "urgent": {"type": "boolean"},
        "day": {"type": "string", "format": "date"},
        "area": {"type": "string", "enum": ["north", "south"]},
        "tags": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["amount", "urgent", "day", "area", "tags"],
    "additionalProperties": False,
}
Fill = Callable[[dict[str, str]], Mapping[str, str]]


def exported(
    world: World, job: Job, name: str = "sheet.xlsx", *, overwrite: bool = False, **wanted: Any
) -> ExportedReviews:
    known, place = world.known(job.name), world.folder / name
    return export_reviews(world.database, known, job, place, Wanted(**wanted), overwrite=overwrite)


def imported(world: World, job: Job, name: str = "sheet.xlsx") -> ImportedReviews:
    return import_reviews(world.database, world.known(job.name), job, world.folder / name, world.clock)


def sheet(world: World, name: str = "sheet.xlsx") -> list[Line]:
    return read_sheet(world.folder / name, "row")


def fill(world: World, fill_: Fill, name: str = "sheet.xlsx", *, into: str | None = None) -> None:
    """Fill in the lines of a sheet as a person does. fill_: returns the new cells of a line."""
    lines = [{**line.cells, **fill_(line.cells)} for line in sheet(world, name)]
    path = world.folder / (into or name)
    if path.suffix == ".xlsx":
        with xlsxwriter.Workbook(str(path)) as book:
            page = book.add_worksheet()
            for n, row in enumerate([dict(zip(lines[0], lines[0], strict=True)), *lines]):
                for i, cell in enumerate(row.values()):
                    page.write_string(n, i, cell)
        return
    with open(path, "w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)


def by_id(**verdicts: str | dict[str, str]) -> Fill:
    """Return what fills in the verdicts of these rows, and perhaps other cells."""

    def filled(cells: dict[str, str]) -> Mapping[str, str]:
        said = verdicts.get(cells["id"], {})
        return {"verdict": said} if isinstance(said, str) else said

    return filled


def reviews(world: World, job: str = "summaries") -> list[Review]:
    sink = ResultsTable.of(world.known(job))
    with world.database.read() as conn:
        table = ReviewsTable(sink)
        return list(table.all(conn)) if table.is_made(conn) else []


def reviewed(world: World, columns: str = "id, label") -> list[tuple[Any, ...]]:
    schema = "" if world.database.is_sqlite else f"{world.database.default_schema}."
    with world.database.read() as conn:
        return [tuple(row) for row in conn.execute(text(f"SELECT {columns} FROM {schema}answers_reviewed ORDER BY id"))]


# -- a sheet there and back ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sheet.xlsx", "sheet.csv"])
def test_what_people_fill_in_is_stored_once(world: World, name: str) -> None:
    job = answered(world, ANSWERS)

    wrote = exported(world, job, name)
    fill(world, by_id(r000="right", r001={"verdict": "Wrong", "new": " A ", "note": "see mail", "by": "Ada"}), name)
    first, second = imported(world, job, name), imported(world, job, name)

    assert (wrote.rows, wrote.lines, wrote.missing, wrote.problem) == (4, 4, 0, None)
    assert (first.added, first.unchanged, first.refused) == (3, 0, [])
    assert first.verdicts == {"right": 1, "wrong": 2}  # the answer that failed is wrong without a word
    assert (second.added, second.unchanged) == (0, 3)
    found = {review.key[0]: review for review in reviews(world)}
    assert found["r001"]._replace(custom_id=None, row_hash=None, at=world.clock()) == Review(
        ("r001",), "label", "b", "wrong", "a", "Ada", "see mail", "all", None, None, None, world.clock()
    )
    assert found["r000"].verdict == "right"
    assert found["r000"].new is None
    assert found["r003"].answer is None
    assert all(review.custom_id and len(review.row_hash or "") == 32 for review in found.values())


def test_a_sheet_shows_the_source_and_what_was_said_before(world: World) -> None:
    job = answered(world, ANSWERS)
    exported(world, job)
    fill(world, by_id(r001={"verdict": "wrong", "new": "a", "by": "Ada"}))
    imported(world, job)

    exported(world, job, "again.csv", where="team = 'blue' OR id = 'r001'")

    shown = [line.cells for line in sheet(world, "again.csv")]
    assert [line["id"] for line in shown] == ["r000", "r001", "r003"]
    assert list(shown[0])[1:] == ["id", "text", "column", "answer", "verdict", "new", "note", "by", "drawn"]
    assert shown[1] | {"row": ""} == {
        "row": "",
        "id": "r001",
        "text": "Text number 1.",
        "column": "label",
        "answer": "b",
        "verdict": "wrong",
        "new": "a",
        "note": "",
        "by": "Ada",
        "drawn": "where team = 'blue' OR id = 'r001'",
    }
    assert (shown[2]["answer"], shown[2]["verdict"]) == ("(failed: truncated)", "wrong")


def as_excel_saves(content: list[list[str]]) -> bytes:
    return ("\ufeff" + as_csv(content, ";")).encode()


def as_unicode_text(content: list[list[str]]) -> bytes:
    return as_csv(content, "\t").encode("utf-16")


def as_libreoffice_saves(content: list[list[str]]) -> bytes:
    return as_csv([["" for _ in content[0]], *content, ["" for _ in content[0]]], ",", csv.QUOTE_ALL).encode()


def as_csv(content: list[list[str]], separator: str, quoting: Any = csv.QUOTE_MINIMAL) -> str:
    out = io.StringIO(newline="")
    csv.writer(out, delimiter=separator, quoting=quoting).writerows(content)
    return out.getvalue()


@pytest.mark.parametrize("saved", [as_excel_saves, as_unicode_text, as_libreoffice_saves])
def test_a_spreadsheet_may_eat_keys_and_save_in_its_own_way(
    world: World, saved: Callable[[list[list[str]]], bytes]
) -> None:
    world.rows([{"id": f"000{i}", "text": f"Línea {i};\nrow, row, row"} for i in range(3)])
    job = world.job(output={"labels": ["a", "b"]})
    world.run(job)
    change(world, "SET label = :label", [{"label": "a"}])
    exported(world, job, "sheet.csv")
    lines = [{**line.cells, "verdict": "WRONG", "new": "B"} for line in sheet(world, "sheet.csv")]
    eaten = [{**cells, "id": str(int(cells["id"]))} for cells in lines]

    (world.folder / "sheet.csv").write_bytes(saved([[*eaten[0]], *[list(cells.values()) for cells in eaten]]))
    imported(world, job, "sheet.csv")

    assert [(review.key, review.new) for review in reviews(world)] == [((f"000{i}",), "b") for i in range(3)]


def test_a_formula_is_a_text_in_the_sheet_and_comes_back_unchanged(world: World) -> None:
    world.rows([{"id": "=1+1", "text": "=2+2"}])
    job = world.job()
    world.run(job)
    change(world, "SET text = :text", [{"text": "=HYPERLINK(0)\x1b[31m"}])

    exported(world, job, "sheet.csv")
    raw = (world.folder / "sheet.csv").read_text(encoding="utf-8-sig")
    lines = sheet(world, "sheet.csv")
    (world.folder / "sheet.csv").write_text(raw.replace(",,,,,all", ",wrong,'-5,'=3+3,,all"))
    imported(world, job, "sheet.csv")

    assert "'=1+1,'=2+2,text,'=HYPERLINK(0)\\x1b[31m,,,," in raw
    assert lines[0]["answer"] == "=HYPERLINK(0)\\x1b[31m"
    [review] = reviews(world)
    assert (review.key, review.answer, review.new, review.note) == (("=1+1",), "=HYPERLINK(0)\x1b[31m", "-5", "=3+3")


# -- what is refused -------------------------------------------------------------------------------------------------


def test_a_row_whose_answer_has_changed_is_refused_by_name(world: World) -> None:
    job = answered(world, ANSWERS[:3])
    exported(world, job)
    fill(world, by_id(r000="right", r001="wrong", r002="right"))
    change(world, "SET label = 'a' WHERE id = 'r001'", [{}])
    change(world, "SET status = 'expired' WHERE id = 'r002'", [{}])

    found = imported(world, job)

    assert found.added == 1
    assert found.refused == [f"{key}: its answer is another one since the export" for key in ("r001", "r002")]
    assert [review.key for review in reviews(world)] == [("r000",)]


def test_a_line_that_cannot_be_right_stops_the_import(world: World) -> None:
    job = answered(world, ANSWERS[:3])
    exported(world, job, "whole.csv")
    for cells, message in (
        ({"row": "r00000000000000000000aaaa"}, "line 3: row r00000000000000000000aaaa is no row of job summaries"),
        ({"row": ""}, "line 3: '' in column row is not what the export has written there"),
        ({"row": "17"}, "line 3: '17' in column row is not"),
        ({"new": "c"}, "line 3: column new is 'c', which is none of a, b"),
        ({"new": "(null)"}, "line 3: column new is '(null)', which is null, which this column cannot be"),
        ({"verdict": "yes"}, "line 3: column verdict is 'yes', which is none of right, wrong, unsure"),
        ({"verdict": "right", "new": "a"}, "line 3: the verdict is right, and column new differs from the answer, 'b'"),
        ({"new": "b"}, "line 3: the verdict is wrong, and column new equals the answer, 'b'"),
        ({"column": "text"}, "line 3: column 'text' is none of label"),
    ):
        fill(world, by_id(r000="right", r001={"verdict": "wrong", **cells}), "whole.csv", into="sheet.csv")

        with pytest.raises(InputError, match="nothing was imported") as caught:
            imported(world, job, "sheet.csv")

        assert message in str(caught.value)
    assert reviews(world) == []


def test_a_row_that_stands_twice_in_a_sheet_stops_the_import(world: World) -> None:
    job = answered(world, ANSWERS[:3])
    exported(world, job)
    row = sheet(world)[0]["row"]
    fill(world, lambda cells: {"verdict": "unsure", "row": row})

    with pytest.raises(
        InputError, match=r"line 3: it is the same row as line 2; keep one of both; .*line 4: it is the"
    ):
        imported(world, job)


def test_a_cell_that_shows_an_error_is_no_empty_cell(world: World) -> None:
    job = answered(world, ANSWERS[:2])
    exported(world, job)
    lines = [line.cells for line in sheet(world)]
    with xlsxwriter.Workbook(str(world.folder / "sheet.xlsx")) as book:
        page = book.add_worksheet()
        for n, cells in enumerate([dict(zip(lines[0], lines[0], strict=True)), *lines]):
            page.write_row(n, 0, list(cells.values()))
        page.write_string(1, list(lines[0]).index("verdict"), "wrong")
        page.write_formula(1, list(lines[0]).index("new"), "=VLOOKUP(1,A1:B2,3)", None, "#REF!")

    with pytest.raises(InputError, match=r"line 2: column new is '#REF!', which is none of"):
        imported(world, job)
    assert reviews(world) == []


def test_files_that_are_no_filled_in_sheet_are_refused(world: World) -> None:
    job = answered(world, ANSWERS[:3])
    exported(world, job)
    (world.folder / "other.csv").write_text("id,label\n1,a\n")
    (world.folder / "latin.csv").write_bytes("row,new\nr1,für".encode("latin-1"))
    (world.folder / "no.xlsx").write_text("no workbook")

    for name, message in (
        ("sheet.xlsx", "no line has a verdict or a new value"),
        ("other.csv", "has no column 'row'; import a file that"),
        ("latin.csv", 'is not in UTF-8 .*"CSV UTF-8"'),
        ("no.xlsx", "cannot be read as a workbook: .*; save it again as .xlsx or CSV$"),
        ("gone.xlsx", "is no file"),
        ("rows.parquet", "is no file"),
    ):
        with pytest.raises(InputError, match=message):
            imported(world, job, name)
    assert reviews(world) == []


def test_an_export_refuses_what_it_cannot_write(world: World) -> None:
    job = answered(world, ANSWERS[:3])
    exported(world, job)

    for wanted, message in (
        ({"where": "label = 'z'"}, "has no answers of these"),
        ({"where": "nothing = 1"}, "is not a SQL predicate"),
        ({"sample": 2, "by": "colour"}, "table answers has no such column"),
        ({"sample": 4, "by": "id"}, "more than 2 values"),
        ({"disagree": ("current", "tomorrow")}, "unknown side 'tomorrow'"),
        ({"disagree": ("current", "current")}, "agree on all of these rows"),
    ):
        with pytest.raises(InputError, match=message):
            exported(world, job, "new.csv", **wanted)
    with pytest.raises(InputError, match=r"sheet.xlsx exists; give another name, or --overwrite"):
        exported(world, job)
    with pytest.raises(InputError, match="must end in"):
        exported(world, job, "new.ods")
    assert not (world.folder / "new.csv").exists()


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"by": "label"}, "this is for --sample"),
        ({"by": "label", "sample": 9, "pairs": ("a", "b")}, "this is for --sample, without"),
        ({"disagree": ("a", "b"), "pairs": ("a", "b")}, "give one of them"),
        ({"blind": True, "pairs": ("a", "b")}, "whose answers have to be seen"),
    ],
)
def test_options_that_do_not_go_together_are_refused(wanted: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Wanted(**wanted)


def test_a_table_of_the_same_name_that_is_not_ours_is_left_alone(world: World) -> None:
    job = answered(world, ANSWERS[:3])
    exported(world, job)
    fill(world, by_id(r000="right"))
    schema = "" if world.database.is_sqlite else f"{world.database.default_schema}."
    with world.database.write() as conn:
        conn.execute(text(f"CREATE TABLE {schema}answers_reviews (a INTEGER)"))

    with pytest.raises(DatabaseError, match="'answers_reviews' exists and holds no reviews"):
        imported(world, job)


# -- corrected answers -----------------------------------------------------------------------------------------------


def test_the_view_shows_the_newest_correction_of_each_answer(world: World) -> None:
    job = answered(world, ANSWERS[:3])
    exported(world, job)
    fill(world, by_id(r000={"verdict": "wrong", "new": "b"}, r001={"new": "a"}))
    imported(world, job)
    fill(world, by_id(r000={"verdict": "right", "new": ""}))
    imported(world, job)

    assert reviewed(world) == [("r000", "a"), ("r001", "a"), ("r002", "b")]
    change(world, "SET custom_id = 'another' WHERE id = 'r001'", [{}])  # it was asked again
    assert reviewed(world) == [("r000", "a"), ("r001", "b"), ("r002", "b")]


def test_a_job_gets_new_columns_while_the_view_shows_its_table(world: World) -> None:
    job = answered(world, ANSWERS[:3])
    exported(world, job)
    fill(world, by_id(r001={"new": "a"}))
    imported(world, job)

    world.run(world.job(source={"keep": ["team", {"truth": "true_label"}]}, output={"labels": ["a", "b"]}))

    assert reviewed(world, "id, label, true_label")[1] == ("r001", "a", "a")


def test_a_column_changes_its_type_while_the_view_shows_it(world: World) -> None:
    schema: dict[str, Any] = {"type": "object", "required": ["amount"], "additionalProperties": False}
    schema["properties"] = {"amount": {"type": "integer"}}
    job = world.job(output={"schema": schema})
    world.rows([{"id": "r0", "text": "One."}])
    world.run(job)
    change(world, "SET amount = 12", [{}])
    exported(world, job)
    fill(world, lambda cells: {"new": "13"})
    imported(world, job)

    world.run(world.job(output={"schema": {**schema, "properties": {"amount": {"type": "number"}}}}))

    assert reviewed(world, "amount") == [(13,)]


def test_a_view_of_others_on_the_view_stays_or_is_named_when_it_is_in_the_way(world: World) -> None:
    job = answered(world, ANSWERS[:3])
    exported(world, job)
    fill(world, by_id(r001={"new": "a"}))
    imported(world, job)
    schema = "" if world.database.is_sqlite else f"{world.database.default_schema}."
    with world.database.write() as conn:
        conn.execute(text(f"CREATE VIEW {schema}theirs AS SELECT label FROM {schema}answers_reviewed"))
    wider = world.job(source={"keep": ["team", {"truth": "true_label"}]}, output={"labels": ["a", "b"]})

    if world.database.is_sqlite:
        world.run(wider)
    else:
        with pytest.raises(DatabaseError, match="columns of 'answers' have to change, and cannot drop view"):
            world.run(wider)

    with world.database.read() as conn:
        assert list(conn.scalars(text(f"SELECT label FROM {schema}theirs ORDER BY 1"))) == ["a", "a", "b"]


def test_each_property_of_a_schema_has_its_line_and_its_type(world: World) -> None:
    job = world.job(output={"schema": SCHEMA})
    world.rows([{"id": "r0", "text": "One."}])
    world.run(job)
    start = {"amount": 12.5, "urgent": False, "day": "2026-11-20", "area": "north", "tags": '["late"]'}
    change(world, f"SET {', '.join(f'{name} = :{name}' for name in start)}", [start])
    new = {"amount": "(null)", "urgent": "TRUE", "day": "2026-11-21 00:00:00", "area": "South", "tags": '[ "a","b" ]'}

    exported(world, job)
    before = {line["column"]: line["answer"] for line in sheet(world)}
    fill(world, lambda cells: {"new": new[cells["column"]]})
    imported(world, job)

    assert before == {**start, "amount": "12.5", "urgent": "false"}
    assert {review.column: review.new for review in reviews(world)} == {
        "amount": "(null)",
        "urgent": "true",
        "day": "2026-11-21",
        "area": "south",
        "tags": '["a","b"]',
    }
    [(amount, urgent, day, area, tags)] = reviewed(world, "amount, urgent, day, area, tags")
    assert (amount, bool(urgent), str(day), area, tags) == (None, True, "2026-11-21", "south", '["a","b"]')


def test_a_value_that_the_schema_does_not_allow_is_refused(world: World) -> None:
    job = world.job(output={"schema": SCHEMA})
    world.rows([{"id": "r0", "text": "One."}])
    world.run(job)
    for column, new, message in (
        ("amount", "many", "is not a number"),
        ("urgent", "perhaps", "is neither true nor false"),
        ("day", "20 November", "is not a date like"),
        ("area", "west", "is none of north, south"),
        ("area", "(null)", "is null, which this column cannot be"),
        ("tags", "a, b", "is no JSON"),
        ("tags", "[1]", "does not fit the schema"),
    ):
        exported(world, job, "sheet.csv", overwrite=True)
        fill(world, cell_of(column, new), "sheet.csv")

        with pytest.raises(InputError, match=message):
            imported(world, job, "sheet.csv")
    assert reviews(world) == []


def cell_of(column: str, new: str) -> Fill:
    return lambda cells: {"new": new} if cells["column"] == column else {}


# -- which rows, and how they are shown ------------------------------------------------------------------------------


def test_a_sample_is_part_of_a_larger_one_and_says_so_of_each_row(world: World) -> None:
    job = answered(world, [("a", "b", "succeeded")] * 30)

    exported(world, job, "five.csv", sample=5)
    exported(world, job, "ten.csv", sample=10)
    exported(world, job, "some.csv", sample=5, where="team = 'red'")

    five, ten, some = (sheet(world, name) for name in ("five.csv", "ten.csv", "some.csv"))
    assert [line["id"] for line in five] == [line["id"] for line in ten[:5]]
    assert {line["drawn"] for line in ten} == {"sample (1 of all)"}
    assert {line["drawn"] for line in some} == {"chosen sample where team = 'red'"}


def test_a_sample_by_label_has_as_many_rows_of_each_as_there_are(world: World) -> None:
    job = answered(world, [(label, label, "succeeded") for label in "a" * 60 + "b" * 37 + "c" * 3])

    exported(world, job, sample=21, by="label")

    drawn = [line["drawn"] for line in sheet(world)]
    assert {one: drawn.count(one) for one in drawn} == {
        "sample by label: a (0.6 of all)": 9,
        "sample by label: b (0.37 of all)": 9,
        "sample by label: c (0.03 of all)": 3,
    }
    assert drawn != sorted(drawn)  # mixed, so that the first lines are a sample as well


def test_a_blind_sheet_has_no_answers_and_the_verdict_follows_from_the_value(world: World) -> None:
    job = answered(world, ANSWERS[:3])
    exported(world, job, blind=True)
    headings = list(sheet(world)[0].cells)
    fill(world, lambda cells: {"new": "A"})

    found = imported(world, job)

    assert not {"answer", "verdict"} & set(headings)
    assert found.verdicts == {"right": 1, "wrong": 2}
    assert [(review.answer, review.verdict, review.new) for review in reviews(world)] == [
        ("a", "right", None),
        ("b", "wrong", "a"),
        ("b", "wrong", "a"),
    ]
    with pytest.raises(InputError, match="free text cannot be judged without being seen"):
        exported(world, world.job(), "blind.csv", blind=True)


def two_jobs(world: World, answers: list[tuple[str, str]], **sections: Any) -> Job:
    """Return a job whose rows have the first of these answers, beside a job `other` with the second ones."""
    world.rows([{"id": f"r{i:03d}", "text": f"Text number {i}."} for i in range(len(answers))])
    column = "label" if "output" in sections else "text"
    for name, table, place in (("other", "others", 1), ("summaries", "answers", 0)):
        job = world.job(name=name, sink={"table": table}, request={"dedupe": False}, **sections)
        world.run(job)
        rows = [{"id": f"r{i:03d}", "value": of[place]} for i, of in enumerate(answers)]
        change(world, f"SET {column} = :value WHERE id = :id", rows, table=table)
    return job


def test_only_rows_on_which_two_sides_disagree_are_shown_with_both_answers(world: World) -> None:
    job = two_jobs(world, [("a", "a"), ("a", "b"), ("b", "b"), ("b", "a")], output={"labels": ["a", "b"]})

    exported(world, job, disagree=("current", "job:other"))

    shown = sorted((line["id"], line["answer"], line["answer of job:other"]) for line in sheet(world))
    assert shown == [("r001", "a", "b"), ("r003", "b", "a")]
    assert {line["drawn"] for line in sheet(world)} == {'disagree ["current","job:other"]'}


def test_of_pairs_the_sides_are_hidden_and_the_wins_are_counted(world: World) -> None:
    count = 40
    job = two_jobs(world, [(f"Short {i}.", f"Long, and longer {i}.") for i in range(count)] + [("Same.", "Same.")])
    exported(world, job, pairs=("current", "job:other"))
    lines = sheet(world)

    def chosen(cells: dict[str, str]) -> Mapping[str, str]:  # a long text is better, but for ten rows
        number = int(cells["id"][1:])
        if number < 4:
            return {"better": "tie"}
        long = "left" if cells["left"].startswith("Long") else "right"
        return {"better": long if number >= 14 else {"left": "right", "right": "left"}[long]}

    fill(world, chosen)
    found, again = imported(world, job), imported(world, job)

    assert len(lines) == count
    assert not any("current" in cell or "other" in cell for line in lines for cell in line.cells.values())
    assert 8 < sum(line["left"].startswith("Long") for line in lines) < 32
    assert found.wins is not None
    assert (found.wins.first, found.wins.second, found.wins.ties) == (10, 26, 4)
    assert found.wins.p == sign_test(10, 26)
    assert (found.added, again.added, again.unchanged, again.wins) == (count, 0, count, found.wins)
    assert {review.new for review in reviews(world)} == {"current", "job:other", None}
    assert {review.drawn for review in reviews(world)} == {'pairs ["current","job:other"]'}


def test_a_sheet_of_pairs_that_does_not_name_its_sides_is_refused(world: World) -> None:
    job = two_jobs(world, [("One.", "Two."), ("Three.", "Four.")])
    for drawn in ("", "pairs", "pairs !", "pairs Zm9v", "pairs WyJhIl0=", 'pairs ["a","b"]'):
        exported(world, job, "sheet.csv", overwrite=True, pairs=("current", "job:other"))
        fill(world, cells_of(better="left", drawn=drawn), "sheet.csv")

        with pytest.raises(InputError, match="column drawn does not name the same two sides in all lines"):
            imported(world, job, "sheet.csv")
    assert reviews(world) == []


def cells_of(**cells: str) -> Fill:
    return lambda _: cells


def test_a_pair_of_which_an_answer_has_changed_is_refused_by_name(world: World) -> None:
    job = two_jobs(world, [("One.", "Two."), ("Three.", "Four.")])
    exported(world, job, pairs=("current", "job:other"))
    fill(world, lambda cells: {"better": "left"})
    change(world, "SET text = 'Five.' WHERE id = 'r001'", [{}], table="others")

    found = imported(world, job)

    assert (found.added, found.refused) == (1, ["r001: one of its answers has changed since the export"])


def test_the_drop_downs_of_a_workbook_offer_verdicts_and_labels(world: World) -> None:
    job = answered(world, ANSWERS[:3])
    exported(world, job)

    with zipfile.ZipFile(world.folder / "sheet.xlsx") as book:
        page, lists = (book.read(f"xl/worksheets/sheet{n}.xml").decode() for n in (1, 2))
        texts = book.read("xl/sharedStrings.xml").decode()
    assert page.count("<dataValidation ") == 2
    assert "choices!$A$1:$A$3" in page
    assert "choices!$B$1:$B$2" in page
    assert "<f>" not in page
    assert lists.count("<c ") == 5
    assert "<t>unsure</t>" in texts
