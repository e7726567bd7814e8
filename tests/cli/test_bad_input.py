"""Bad input, through the real command line: exit 2, one sentence with the culprit and the remedy, nothing sent."""

import gzip
import os
import sqlite3
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import polars as pl
import pytest

from pipeline.cli.app import main
from pipeline.emulator import RunningEmulator, start

JOB = """\
name: tickets
source:
  path: tickets.csv
  key: id
request:
  model: claude-haiku-4-5
  max_tokens: 300
  prompt: "Sum up: {{ body }}"
sink:
  table: answers
"""
TICKETS = "id,body,account\n1,The ship sank.,a\n2,It rained.,a\n3,All is well.,b\n"


class Ran(NamedTuple):
    """The exit code, stdout and stderr of a command."""

    code: int
    out: str
    err: str


Command = Callable[..., Ran]


class Api:
    """The emulator of one test, which ignores requests accepted before the test began."""

    def __init__(self, running: RunningEmulator) -> None:
        self.url = running.url
        self._running = running
        self._before = len(list(running.emulator.accepted()))

    def accepted(self) -> int:
        """Return how many requests were accepted since the test began."""
        return len(list(self._running.emulator.accepted())) - self._before


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningEmulator]:
    with start(tmp_path_factory.mktemp("api") / "emu") as running:
        yield running


@pytest.fixture
def api(running: RunningEmulator) -> Api:
    return Api(running)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write a valid job and its tickets, and return their folder."""
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "job.yaml").write_text(JOB)
    (folder / "tickets.csv").write_text(TICKETS)
    return folder


@pytest.fixture
def command(
    api: Api,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Command:
    """Return a function that runs a command in the job's folder, in this process, with the emulator as the API."""

    def ran(*arguments: str) -> Ran:
        monkeypatch.setattr(sys, "argv", ["batch-pipeline", *arguments])
        with pytest.raises(SystemExit) as exit_:
            main()
        captured = capfd.readouterr()
        assert isinstance(exit_.value.code, int)
        return Ran(exit_.value.code, captured.out, captured.err)

    for name in [name for name in os.environ if name.startswith(("ANTHROPIC_", "BATCH_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("ANTHROPIC_BASE_URL", api.url)
    monkeypatch.setenv("ANTHROPIC_API_KEY", "emulated")
    monkeypatch.setenv("BATCH_POLL_SECONDS", "0.01")
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.chdir(folder)
    return ran


def assert_refused(ran: Ran, api: Api, *said: str) -> None:
    """Assert exit code 2, one sentence with all these parts, and nothing sent."""
    errors = [line for line in ran.err.splitlines() if line.startswith("error: ")]
    assert ran.code == 2, ran.err
    assert len(errors) == 1, ran.err
    assert ran.err.splitlines()[-1] == errors[0], f"more than one line: {ran.err}"
    assert "Traceback" not in ran.err
    for part in said:
        assert part in errors[0]
    assert api.accepted() == 0


def test_the_job_of_these_tests_is_accepted_unchanged(command: Command, api: Api) -> None:
    ran = command("run", "job.yaml")

    assert ran.code == 0, ran.err
    assert api.accepted() == 3


# -- the job file ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["run", "check"])
@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        pytest.param(
            "max_tokens",
            "max_token",
            ["job.yaml line 7", "max_token", "did you mean 'max_tokens'"],
            id="a misspelt field",
        ),
        pytest.param(
            "sink:", "snk:", ["job.yaml", "snk: unknown field", "did you mean 'sink'"], id="a misspelt section"
        ),
        pytest.param(
            "  key: id",
            "  key: id\n  frobnicate: 1",
            ["job.yaml line 5", "source.frobnicate", "known: path"],
            id="an unknown field",
        ),
        pytest.param(
            "  key: id\n", "", ["job.yaml line 2", "source.key: this field is required"], id="a missing field"
        ),
        pytest.param("name: tickets", "name: [tickets", ["job.yaml line 2", "not valid YAML"], id="bad YAML"),
        pytest.param("  key: id", "\tkey: id", ["job.yaml line 4", "not valid YAML"], id="a tab in YAML"),
        pytest.param(
            "  key: id",
            "  key: id\n  key: x",
            ["job.yaml line 5", "'key' is given twice", "remove one"],
            id="a field twice",
        ),
        pytest.param(
            "sink:",
            "limits: {deadline: 20h}\nsink:",
            ["job.yaml line", "limits.deadline", "remove the field"],
            id="a field of later",
        ),
        pytest.param(
            "300", "0", ["job.yaml line 7", "request.max_tokens", "greater than or equal to 1"], id="no tokens"
        ),
        pytest.param("300", "-5", ["job.yaml line 7", "request.max_tokens"], id="negative tokens"),
        pytest.param("300", "lots", ["job.yaml line 7", "request.max_tokens", "'lots'"], id="tokens as a word"),
        pytest.param(
            "300", "9999999", ["job.yaml line 7", "request.max_tokens", "300000"], id="more tokens than any model has"
        ),
        pytest.param(
            "300",
            "300\n  params: {temperature: 0}",
            ["request.params.temperature", "2026-10-21", "remove the field"],
            id="temperature",
        ),
        pytest.param(
            "300", "300\n  params: {top_p: 0.5}", ["request.params.top_p", "2026-10-21", "remove the field"], id="top_p"
        ),
        pytest.param(
            "300", "300\n  params: {top_k: 5}", ["request.params.top_k", "2026-10-21", "remove the field"], id="top_k"
        ),
        pytest.param(
            "300",
            "300\n  params: {stop_sequence: [x]}",
            ["request.params.stop_sequence", "did you mean 'stop_sequences'"],
            id="a param unknown to the SDK",
        ),
        pytest.param(
            "300",
            "300\n  params: {output_config: {effort: huge}}",
            ["request.params.output_config.effort", "'huge'", "'low'"],
            id="a param with a wrong value",
        ),
        pytest.param(
            "300",
            "300\n  params: {thinking: {type: enabled, budget_tokens: 300}}",
            ["budget_tokens", "300", "below max_tokens"],
            id="thinking over max_tokens",
        ),
        pytest.param(
            "{{ body }}",
            "{{ body",
            ["request.prompt", "line 1 of the template"],
            id="a template that does not compile",
        ),
        pytest.param(
            "{{ body }}",
            "{% if body %}",
            ["request.prompt", "line 1 of the template"],
            id="an open if",
        ),
        pytest.param(
            "{{ body }}",
            "{{ body|summarise }}",
            ["request.prompt", "summarise"],
            id="an unknown filter",
        ),
        pytest.param(
            "{{ body }}",
            "{{ body.__class__ }}",
            ["request.prompt", "__class__", "not allowed"],
            id="a way out of the sandbox",
        ),
        pytest.param(
            "{{ body }}", "{{ body|attr('__class__') }}", ["request.prompt", "not allowed"], id="a way out by a filter"
        ),
        pytest.param(
            "{{ body }}",
            "{{ '{0.__class__}'.format(body) }}",
            ["request.prompt", "not allowed"],
            id="a way out by a format",
        ),
        pytest.param(
            "{{ body }}",
            "{% include '/etc/passwd' %}",
            ["request.prompt"],
            id="another file in the template",
        ),
        pytest.param(
            "{{ body }}",
            "{{ boddy }}",
            ["request.prompt", "'boddy'", "did you mean 'body'", "it has: id, body, account"],
            id="a column of the template",
        ),
        pytest.param("{{ body }}", "{{ row['bdy'] }}", ["request.prompt", "'bdy'"], id="a column by row"),
        pytest.param("{{ body }}", "{{ vars.day }}", ["request.prompt", "vars.day"], id="an undeclared var"),
        pytest.param(
            "tickets.csv",
            "'{{ vars.day }}.csv'",
            ["job.yaml line 3", "source.path", "vars.day"],
            id="an undeclared var in a path",
        ),
        pytest.param(
            "key: id", "key: ticket_id", ["source.key", "'ticket_id'", "it has: id, body, account"], id="a key column"
        ),
        pytest.param(
            "key: id",
            "key: [id, acount]",
            ["source.key", "'acount'", "did you mean 'account'"],
            id="one of two key columns",
        ),
        pytest.param(
            "key: id",
            "key: id\n  keep: [opened]",
            ["source.keep", "'opened'", "it has: id, body, account"],
            id="a kept column",
        ),
        pytest.param("key: id", "key: id\n  where: \"prio = 'x'\"", ["source.where", "'prio'"], id="a column of where"),
        pytest.param(
            "key: id",
            "key: id\n  types: {id: Number}",
            ["source.types.id", "'Number'", "choose one of String"],
            id="an unknown type",
        ),
        pytest.param(
            "key: id",
            "key: id\n  types: {body: Int64}",
            ["tickets.csv row 1", "'body'", "'The ship sank.'", "source.types"],
            id="a value not of its type",
        ),
        pytest.param(
            "key: id", "key: id\n  encoding: utf-99", ["source.encoding", "'utf-99'"], id="an unknown encoding"
        ),
        pytest.param(
            "key: id",
            "key: id\n  keep: [{body: status}]",
            ["source.keep", "'status'", "clashes"],
            id="a kept column called as ours",
        ),
        pytest.param(
            "key: id",
            "key: id\n  keep: [{body: Cost_USD}]",
            ["source.keep", "'Cost_USD'", "clashes"],
            id="the same in other case",
        ),
        pytest.param(
            "key: id",
            "key: id\n  keep: [{body: id}]",
            ["source.keep", "'id'", "clashes"],
            id="a kept column called as the key",
        ),
        pytest.param(
            "  table: answers",
            "  table: answers\noutput: {labels: [a]}",
            ["job.yaml line 11", "labels", "at least two"],
            id="one label",
        ),
    ],
)
def test_a_wrong_job_file_is_refused(
    command: Command, api: Api, folder: Path, name: str, old: str, new: str, said: list[str]
) -> None:
    assert old in JOB
    (folder / "job.yaml").write_text(JOB.replace(old, new))

    ran = command(name, "job.yaml")

    assert_refused(ran, api, *said)


ROUNDS = JOB.replace(
    "  prompt:",
    "  params: {tools: [{name: find, input_schema: {type: object, properties: {number: {type: string}}}}]}\n  prompt:",
) + "rounds: {tools: {find: ticket_tools.find}}\n"  # fmt: skip


@pytest.mark.parametrize("name", ["run", "check"])
@pytest.mark.parametrize(
    ("module", "said"),
    [
        pytest.param(None, "rounds.tools.find: ticket_tools.find cannot be imported: there is no module", id="none"),
        pytest.param(
            "def fnd(): ...", "module ticket_tools has no function 'find'; did you mean 'fnd'?", id="misspelt"
        ),
        pytest.param("find = 5", "ticket_tools.find is a value of type int, not a function", id="no function"),
        pytest.param("def find(no=''): ...", "ticket_tools.find takes no argument 'number'", id="other arguments"),
    ],
)
def test_a_tool_without_a_function_that_fits_is_refused(
    command: Command, api: Api, folder: Path, name: str, module: str | None, said: str
) -> None:
    (folder / "job.yaml").write_text(ROUNDS)
    if module is not None:
        (folder / "ticket_tools.py").write_text(module)

    assert_refused(command(name, "job.yaml"), api, said)


def test_a_results_column_that_clashes_with_the_label_is_refused(command: Command, api: Api, folder: Path) -> None:
    (folder / "job.yaml").write_text(
        JOB.replace("key: id", "key: id\n  keep: [{body: label}]") + "output: {labels: [a, b]}\n"
    )

    assert_refused(command("run", "job.yaml"), api, "source.keep", "'label'", "clashes", "another name")


def test_a_key_column_with_a_name_of_the_answers_table_is_refused(command: Command, api: Api, folder: Path) -> None:
    (folder / "job.yaml").write_text(JOB.replace("key: id", "key: status"))
    (folder / "tickets.csv").write_text(TICKETS.replace("id,", "status,"))

    assert_refused(command("run", "job.yaml"), api, "source.key", "'status'", "clashes", "rename the column")


# -- the source ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["run", "check"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        pytest.param(b"", ["tickets.csv is empty"], id="an empty file"),
        pytest.param(b"\n\n", ["tickets.csv is empty"], id="nothing but newlines"),
        pytest.param(
            b"id,body\n1,a\n2,b,c\n", ["tickets.csv", "2,b,c", "has 3 fields, the header 2"], id="a ragged row"
        ),
        pytest.param(b"id,body\n1,a\n2\n", ["tickets.csv", "has 1 field, the header 2"], id="a row too short"),
        pytest.param(b'id,body\n1,a\n2,"b\n3,c\n', ["tickets.csv row 2", "never closed"], id="an open quote"),
        pytest.param(b"id,body\n1,K\xe4se\n", ["tickets.csv", "source.encoding"], id="a wrong encoding"),
        pytest.param(
            b"id,body,body\n1,a,b\n", ["tickets.csv", "'body' occurs twice", "rename one"], id="a column twice"
        ),
        pytest.param(b"id;body\n1;a\n", ["source.key", "'id'", "id;body"], id="semicolons"),
        pytest.param(
            b'id,body\n1,a\n,b\n"",c\n4,d\n',
            ["source.key", "'id' is empty", "tickets.csv row 2, tickets.csv row 3", "source.where"],
            id="empty keys",
        ),
        pytest.param(
            b"id,body\n1,a\n2,b\n1,c\n2,d\n3,e\n",
            [
                "source.key",
                "1 in tickets.csv row 1, tickets.csv row 3",
                "2 in tickets.csv row 2",
                "choose columns whose values identify each row",
            ],
            id="duplicate keys",
        ),
    ],
)
def test_a_wrong_csv_is_refused(
    command: Command, api: Api, folder: Path, name: str, content: bytes, said: list[str]
) -> None:
    (folder / "tickets.csv").write_bytes(content)

    ran = command(name, "job.yaml")

    assert_refused(ran, api, *said)


def test_ten_of_many_duplicate_keys_are_shown_and_the_others_counted(command: Command, api: Api, folder: Path) -> None:
    (folder / "tickets.csv").write_text("id,body\n" + "".join(f"k{n},a\nk{n},b\n" for n in range(25)))

    ran = command("run", "job.yaml")

    assert_refused(ran, api, "(and 15 more)")
    assert sum(f"k{n} in " in ran.err for n in range(25)) == 10


def test_ten_of_many_empty_keys_are_shown(command: Command, api: Api, folder: Path) -> None:
    (folder / "tickets.csv").write_text("id,body\n" + ",b\n" * 25)

    ran = command("run", "job.yaml")

    assert_refused(ran, api, "tickets.csv row 10;")
    assert "row 11" not in ran.err


def test_duplicate_keys_of_two_columns_are_shown_with_both_columns(command: Command, api: Api, folder: Path) -> None:
    (folder / "job.yaml").write_text(JOB.replace("key: id", "key: [account, id]"))
    (folder / "tickets.csv").write_text("id,body,account\n1,x,a\n1,x,b\n2,x,a\n1,x,a\n")

    assert_refused(command("run", "job.yaml"), api, "a,1 in tickets.csv row 1, tickets.csv row 4")


def test_a_duplicate_key_in_two_files_is_reported_with_both_files(command: Command, api: Api, folder: Path) -> None:
    (folder / "job.yaml").write_text(JOB.replace("tickets.csv", "'*.csv'"))
    (folder / "more.csv").write_text(TICKETS.replace("3,", "4,").replace("1,", "5,"))

    assert_refused(command("run", "job.yaml"), api, "2 in more.csv row 2, tickets.csv row 2")


@pytest.mark.parametrize(
    ("path", "said"),
    [
        pytest.param("nope.csv", ["source.path", "nope.csv does not exist"], id="no such file"),
        pytest.param(
            "'2026-*.csv'", ["source.path", "no file matches", "2026-*.csv"], id="a glob that matches nothing"
        ),
        pytest.param("empty", ["source.path", "empty holds no CSV"], id="an empty folder"),
        pytest.param("[tickets.csv, nope.csv]", ["source.path", "nope.csv does not exist"], id="one of a list"),
        pytest.param("differ", ["column 'body'", "a.csv", "b.csv", "need the same columns"], id="columns that differ"),
        pytest.param("formats", ["source.path", "different formats", "csv, ndjson"], id="formats that differ"),
        pytest.param("broken.parquet", ["broken.parquet", "cannot be read"], id="broken Parquet"),
        pytest.param("cut.parquet", ["cut.parquet", "cannot be read"], id="Parquet that was cut off"),
        pytest.param("nulls.parquet", ["source.key", "'id' is empty", "nulls.parquet row 2"], id="a null key"),
        pytest.param(
            "twice.parquet", ["source.key", "7 in twice.parquet row 1, twice.parquet row 3"], id="a key twice"
        ),
        pytest.param("broken.ndjson", ["broken.ndjson line 2", "not JSON"], id="broken NDJSON"),
        pytest.param("not.csv.gz", ["not.csv.gz", "is not compressed, although its name says so"], id="not compressed"),
        pytest.param("empty.csv.gz", ["empty.csv.gz is empty"], id="empty when decompressed"),
        pytest.param(
            "table.xlsx", ["table.xlsx", "spreadsheets are not supported", "save it as CSV"], id="a spreadsheet"
        ),
        pytest.param("ftp://host/a.csv", ["ftp://host/a.csv", "s3://, gs://, az://"], id="a server of another kind"),
    ],
)
def test_a_wrong_source_is_refused(command: Command, api: Api, folder: Path, path: str, said: list[str]) -> None:
    for name in ("empty", "differ", "formats"):
        (folder / name).mkdir()
    (folder / "differ/a.csv").write_text("id,text\n1,a\n")
    (folder / "differ/b.csv").write_text("id,body\n2,b\n")
    (folder / "formats/a.csv").write_text("id,body\n1,a\n")
    (folder / "formats/b.ndjson").write_text('{"id":2,"body":"b"}\n')
    (folder / "broken.parquet").write_bytes(b"PAR1" + b"\x00" * 100)
    pl.DataFrame({"id": [1, None, 3], "body": ["a"] * 3}).write_parquet(folder / "nulls.parquet")
    pl.DataFrame({"id": [7, 8, 7], "body": ["a"] * 3}).write_parquet(folder / "twice.parquet")
    (folder / "cut.parquet").write_bytes((folder / "twice.parquet").read_bytes()[:-20])
    (folder / "broken.ndjson").write_text('{"id":1,"body":"a"}\n{"id":2,"bo\n')
    (folder / "not.csv.gz").write_text(TICKETS)
    (folder / "empty.csv.gz").write_bytes(gzip.compress(b""))
    (folder / "table.xlsx").write_bytes(b"PK")
    (folder / "job.yaml").write_text(JOB.replace("path: tickets.csv", f"path: {path}"))

    ran = command("run", "job.yaml")

    assert_refused(ran, api, *said)


# -- the database and its tables -------------------------------------------------------------------------------------


def test_a_table_of_another_program_is_refused_and_left_unchanged(command: Command, api: Api, folder: Path) -> None:
    with sqlite3.connect(folder / "batches.db") as theirs:
        theirs.execute("CREATE TABLE answers (a TEXT)")
        theirs.execute("INSERT INTO answers VALUES ('precious')")
    theirs.close()

    ran = command("run", "job.yaml")

    assert_refused(ran, api, "sink.table", "'answers' exists and was not made by this job", "choose another name")
    after = sqlite3.connect(folder / "batches.db")
    assert after.execute("SELECT * FROM answers").fetchall() == [("precious",)]
    after.close()


@pytest.mark.parametrize("table", ["requests", "REQUESTS", "jobs", "sqlite_answers"])
def test_a_table_of_the_state_database_is_refused_as_results_table(
    command: Command, api: Api, folder: Path, table: str
) -> None:
    (folder / "job.yaml").write_text(JOB.replace("answers", table))

    assert_refused(command("run", "job.yaml"), api, "sink.table", table, "choose another name")


def test_the_results_table_of_another_job_is_refused(command: Command, api: Api, folder: Path) -> None:
    (folder / "job.yaml").write_text(JOB)
    assert command("run", "job.yaml").code == 0
    accepted = api.accepted()
    (folder / "other.yaml").write_text(JOB.replace("name: tickets", "name: other").replace("answers", "Answers"))

    ran = command("run", "other.yaml")

    assert ran.code == 2
    assert "error: sink.table: 'Answers' belongs to job tickets; choose another name" in ran.err
    assert api.accepted() == accepted


@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param(("key: id", "key: [id, account]"), "source.key: table 'answers' has the key id", id="key columns"),
        pytest.param(("answers", "other_answers"), "has its answers in table 'answers'; go back to it", id="table"),
    ],
)
def test_a_change_of_the_job_that_its_stored_answers_forbid_is_refused(
    command: Command, api: Api, folder: Path, change: tuple[str, str], said: str
) -> None:
    assert command("run", "job.yaml").code == 0
    accepted = api.accepted()
    (folder / "job.yaml").write_text(JOB.replace(*change))

    ran = command("run", "job.yaml")

    assert (ran.code, said in ran.err) == (2, True), ran.err
    assert api.accepted() == accepted


def test_a_missing_results_table_is_refused(command: Command, api: Api, folder: Path) -> None:
    assert command("run", "job.yaml").code == 0
    accepted = api.accepted()
    ours = sqlite3.connect(folder / "batches.db")
    ours.execute("DROP TABLE answers")
    ours.commit()
    ours.close()

    ran = command("run", "job.yaml")

    assert (ran.code, "table 'answers' does not exist any more" in ran.err) == (2, True), ran.err
    assert api.accepted() == accepted


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        pytest.param(
            ["--database", "sqlite:///nope/a.db"], ["nope/a.db", "--database"], id="a folder that is not there"
        ),
        pytest.param(["--database", "sqlite:///tickets.csv"], ["tickets.csv", "--database"], id="a file that is none"),
        pytest.param(["--database", "sqlite:////dev/null/a.db"], ["/dev/null/a.db", "--database"], id="not writable"),
        pytest.param(["--database", "batches.db"], ["'batches.db'", "sqlite:///"], id="a path in place of a URL"),
        pytest.param(["--database", "mysql://u:secret@h/d"], ["mysql", "postgresql+psycopg://"], id="another database"),
        pytest.param(["--database", "sqlite://"], ["sqlite://", "a SQLite file"], id="a database in memory"),
        pytest.param(["--database", "sqlite:///theirs.db"], ["theirs.db", "not ours", "--database"], id="theirs"),
        pytest.param(["--spool", "tickets.csv"], ["tickets.csv", "--spool"], id="a spool that is a file"),
        pytest.param(["--var", "day"], ["--var day", "NAME=VALUE"], id="a var without a value"),
        pytest.param(["--var", "day=x"], ["--var day", "declares no such var"], id="a var that is not declared"),
        pytest.param(["--limit", "0"], ["--limit"], id="a limit of nothing"),
        pytest.param(["--poll-seconds", "soon"], ["--poll-seconds", "number"], id="no number"),
    ],
)
def test_a_wrong_option_is_refused(
    command: Command, api: Api, folder: Path, arguments: list[str], said: list[str]
) -> None:
    theirs = sqlite3.connect(folder / "theirs.db")
    theirs.execute("CREATE TABLE requests (a TEXT)")
    theirs.commit()
    theirs.close()

    ran = command("run", "job.yaml", *arguments)

    assert_refused(ran, api, *said)
    assert "secret" not in ran.err


# -- the API ---------------------------------------------------------------------------------------------------------


def test_a_missing_key_is_refused(command: Command, api: Api, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    monkeypatch.setenv("HOME", str(tmp_path))

    assert_refused(command("run", "job.yaml"), api, "ANTHROPIC_API_KEY", "--emulator")


def test_an_empty_key_is_refused(command: Command, api: Api, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "")
    monkeypatch.setenv("HOME", str(tmp_path))

    assert_refused(command("run", "job.yaml"), api, "ANTHROPIC_API_KEY")


@pytest.mark.parametrize(
    "url",
    [
        pytest.param("http://127.0.0.1:9", id="nobody listens"),
        pytest.param("http://no-such-host.invalid", id="no such host"),
        pytest.param("127.0.0.1:9", id="no scheme"),
    ],
)
def test_an_address_that_does_not_answer_is_refused(
    command: Command, api: Api, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("ANTHROPIC_BASE_URL", url)

    assert_refused(command("run", "job.yaml"), api, url, "ANTHROPIC_BASE_URL")


# -- what is not there, and wrong commands ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        pytest.param(["run", "nope.yaml"], ["nope.yaml", "cannot read the job file"], id="no such job file"),
        pytest.param(["run", "tickets"], ["batches.db", "--database"], id="a job that no database knows"),
        pytest.param(["status", "job.yaml"], ["batches.db", "run a job first"], id="status before any run"),
        pytest.param(["check", "tickets.csv"], ["tickets.csv"], id="a table in place of a job file"),
        pytest.param(["run"], ["JOB"], id="no job"),
        pytest.param(["rnu", "job.yaml"], ["rnu"], id="no such command"),
        pytest.param(["run", "job.yaml", "--frobnicate"], ["--frobnicate"], id="no such option"),
    ],
)
def test_a_wrong_command_is_refused(command: Command, api: Api, arguments: list[str], said: list[str]) -> None:
    assert_refused(command(*arguments), api, *said)


def test_a_job_file_that_is_not_utf8_is_refused(command: Command, api: Api, folder: Path) -> None:
    (folder / "job.yaml").write_bytes(JOB.replace("Sum up", "Fässe").encode("latin-1"))

    assert_refused(command("run", "job.yaml"), api, "job.yaml", "UTF-8")


# -- single rows -----------------------------------------------------------------------------------------------------


def test_a_row_that_cannot_be_sent_is_invalid_with_its_reason_and_the_others_are_sent(
    command: Command, api: Api, folder: Path
) -> None:
    frame = {"id": ["null", "large", "fine", "also"], "body": [None, "x" * 5_000, "The ship sank.", "It rained."]}
    pl.DataFrame(frame).write_parquet(folder / "tickets.parquet")
    limits = "limits: {max_batch_bytes: 3000}\n"
    (folder / "job.yaml").write_text(JOB.replace("tickets.csv", "tickets.parquet") + limits)

    ran = command("run", "job.yaml")

    assert ran.code == 1, ran.err
    results = sqlite3.connect(folder / "batches.db")
    rows = dict(results.execute("SELECT id, status || ': ' || coalesce(error_message, text) FROM answers").fetchall())
    results.close()
    assert set(rows) == {"null", "large", "fine", "also"}
    assert rows["null"] == "invalid: the template prints a null; null in this row: body"
    assert rows["large"].startswith("invalid: the request has 5,")
    assert "more than a batch can carry" in rows["large"]
    assert rows["fine"].startswith("succeeded: [emulated]")
    assert rows["also"].startswith("succeeded: [emulated]")
    assert api.accepted() == 2


def test_a_file_with_only_a_header_gives_a_run_without_rows(command: Command, api: Api, folder: Path) -> None:
    (folder / "tickets.csv").write_text("id,body\n")

    ran = command("run", "job.yaml")

    assert ran.code == 0, ran.err
    assert api.accepted() == 0


def test_a_key_that_is_a_number_in_one_parquet_file_and_text_in_another_is_refused(
    command: Command, api: Api, folder: Path
) -> None:
    pl.DataFrame({"id": [17], "body": ["a"]}).write_parquet(folder / "a.parquet")
    pl.DataFrame({"id": ["17"], "body": ["b"]}).write_parquet(folder / "b.parquet")
    (folder / "job.yaml").write_text(JOB.replace("tickets.csv", "'*.parquet'"))

    assert_refused(command("run", "job.yaml"), api, "id", "a.parquet", "b.parquet")


def test_a_prompt_without_any_column_is_the_same_request_for_every_row(
    command: Command, api: Api, folder: Path
) -> None:
    (folder / "job.yaml").write_text(JOB.replace("Sum up: {{ body }}", "Tell a joke."))

    ran = command("run", "job.yaml")

    assert ran.code == 0, ran.err
    assert api.accepted() == 1


def test_a_key_column_named_twice_is_refused(command: Command, api: Api, folder: Path) -> None:
    (folder / "job.yaml").write_text(JOB.replace("key: id", "key: [id, id]"))

    assert_refused(command("run", "job.yaml"), api, "source.key", "id")


def test_a_key_that_is_nan_is_refused_like_an_empty_key(command: Command, api: Api, folder: Path) -> None:
    pl.DataFrame({"id": [1.0, float("nan")], "body": ["a", "b"]}).write_parquet(folder / "tickets.parquet")
    (folder / "job.yaml").write_text(JOB.replace("tickets.csv", "tickets.parquet"))

    assert_refused(command("run", "job.yaml"), api, "source.key", "'id'", "tickets.parquet row 2")


def test_an_address_of_another_server_is_refused(command: Command, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_BASE_URL", f"{api.url}/elsewhere")

    assert_refused(command("run", "job.yaml"), api, f"{api.url}/elsewhere", "ANTHROPIC_BASE_URL")


def test_an_error_shows_its_traceback_only_when_asked(command: Command, folder: Path) -> None:
    (folder / "job.yaml").write_text(JOB.replace("max_tokens", "max_token"))

    from pipeline.errors import JobError

    with pytest.raises(JobError, match="max_token"):
        command("run", "job.yaml", "--debug")
