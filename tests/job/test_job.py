"""What a job file means, and which error a wrong one gives."""

from collections.abc import Callable
from datetime import date
from pathlib import Path

import orjson
import pytest
from pydantic import ValidationError

from pipeline.errors import JobError
from pipeline.job.load import load
from pipeline.job.model import FUTURE_FIELDS, STATE_TABLES, Job
from pipeline.state.tables import metadata

TODAY = date(2026, 11, 20)
PLAIN = """\
name: tickets
vars: {day: today, tone: calm}
source:
  path: in/{{ vars.day }}.csv
  key: [account, id]
request:
  model: claude-haiku-4-5
  max_tokens: 300
  prompt: "Be {{ vars.tone }}: {{ body }}"
sink:
  table: answers
"""
Loader = Callable[..., Job]


@pytest.fixture
def job(tmp_path: Path) -> Loader:
    """Loads a job file with this text; keyword arguments are vars given on the command line."""

    def made(text: str = PLAIN, **given: str) -> Job:
        file = tmp_path / "job.yaml"
        file.write_text(text, encoding="utf-8")
        return load(file, variables=given, today=TODAY)

    return made


def refusal(job: Loader, text: str, **given: str) -> str:
    with pytest.raises(JobError) as refused:
        job(text, **given)
    return str(refused.value)


# -- what it means ---------------------------------------------------------------------------------------------------


def test_a_job_with_the_required_fields_only_has_the_documented_defaults(job: Loader) -> None:
    loaded = job()

    assert loaded.request.system is None
    assert loaded.request.dedupe is True
    assert loaded.source.nulls == "invalid"
    assert loaded.source.encoding == "utf-8"
    assert loaded.output.labels is None
    assert (loaded.limits.max_failed, loaded.limits.max_batch_requests) == (0, 25_000)
    assert loaded.limits.max_batch_bytes == 240_000_000
    assert loaded.retry.max_attempts == 3
    assert loaded.retry.errors == [
        "expired",
        "api_error",
        "overloaded_error",
        "timeout_error",
        "rate_limit_error",
    ]


@pytest.mark.parametrize(
    ("written", "value"),
    [
        pytest.param("today", "2026-11-20", id="today"),
        pytest.param("yesterday", "2026-11-19", id="yesterday"),
        pytest.param("Today", "Today", id="another spelling is a text of its own"),
        pytest.param("2026-11-01", "2026-11-01", id="a date stays as it is written"),
        pytest.param("007", "007", id="leading zeros stay"),
    ],
)
def test_a_var_is_filled_into_paths(job: Loader, tmp_path: Path, written: str, value: str) -> None:
    loaded = job(PLAIN.replace("day: today", f"day: {written}"))

    assert loaded.vars["day"] == value
    assert loaded.source.path == [str(tmp_path / f"in/{value}.csv")]


def test_a_var_from_the_command_line_overrides_the_file_and_may_be_yesterday(job: Loader) -> None:
    assert job(day="yesterday").vars["day"] == "2026-11-19"
    assert (job(day="2026-01-02").source.path or [""])[0].endswith("in/2026-01-02.csv")


def test_yesterday_of_the_first_of_march_respects_leap_years(job: Loader, tmp_path: Path) -> None:
    job()

    loaded = load(tmp_path / "job.yaml", variables={"day": "yesterday"}, today=date(2028, 3, 1))

    assert loaded.vars["day"] == "2028-02-29"


def test_vars_are_filled_into_every_string_but_the_prompt(job: Loader) -> None:
    text = PLAIN.replace(
        "  max_tokens",
        '  system: "Stay {{ vars.tone }}"\n  params: {stop_sequences: ["{{ vars.tone }}"]}\n  max_tokens',
    ).replace("table: answers", "table: answers_{{ vars.tone }}")

    loaded = job(text)

    assert loaded.request.system == "Stay calm"
    assert loaded.request.params == {"stop_sequences": ["calm"]}
    assert loaded.sink.table == "answers_calm"
    assert loaded.request.prompt == "Be {{ vars.tone }}: {{ body }}"


def test_paths_are_relative_to_the_job_file_unless_absolute(job: Loader, tmp_path: Path) -> None:
    paths = '["a.csv", "../b/*.csv", "/data/c.csv", "s3://bucket/d.csv"]'

    loaded = job(PLAIN.replace("in/{{ vars.day }}.csv", paths))

    assert loaded.source.path == [
        str(tmp_path / "a.csv"),
        str(tmp_path / "../b/*.csv"),
        "/data/c.csv",
        "s3://bucket/d.csv",
    ]


def test_one_key_and_one_path_may_be_written_without_a_list(job: Loader) -> None:
    loaded = job(PLAIN.replace("[account, id]", "id"))

    assert loaded.source.key == ["id"]
    assert len(loaded.source.path or []) == 1


def test_kept_columns_may_get_another_name(job: Loader) -> None:
    loaded = job(PLAIN.replace("  key:", "  keep: [opened, {status: ticket_status}]\n  key:"))

    assert loaded.source.keep == {"opened": "opened", "status": "ticket_status"}


def test_labels_and_values_that_other_yaml_readers_turn_into_booleans_stay_text(job: Loader) -> None:
    loaded = job(PLAIN + "output: {labels: [yes, no, on, 2026-11-20, 01234]}\n")

    assert loaded.output.labels == ["yes", "no", "on", "2026-11-20", "01234"]


def test_a_switched_off_canary_and_the_default_client_are_accepted(job: Loader) -> None:
    assert job(PLAIN + "canary: false\napi: {client: default}\n").canary is False


def test_a_job_is_unchanged_after_the_database_stored_and_loaded_it(job: Loader) -> None:
    loaded = job(PLAIN + "output: {labels: [a, b]}\n")

    again = Job.model_validate(orjson.loads(orjson.dumps(loaded.model_dump(mode="json"))))

    assert again == loaded
    assert again.recipe == loaded.recipe


def test_a_job_can_be_made_in_python_and_does_not_change() -> None:
    made = Job.model_validate(
        {
            "name": "tickets",
            "source": {"path": "a.csv", "key": "id"},
            "request": {"model": "claude-haiku-4-5", "max_tokens": 10, "prompt": "{{ body }}"},
            "sink": {"table": "answers"},
        }
    )

    assert made.source.path == ["a.csv"]
    with pytest.raises(ValidationError, match="frozen"):
        made.name = "other"


# -- the recipe ------------------------------------------------------------------------------------------------------

FULL = PLAIN + "output: {labels: [a, b]}\nlimits: {max_failed: 0.1}\nretry: {max_attempts: 3}\n"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("claude-haiku-4-5", "claude-sonnet-5", id="model"),
        pytest.param("max_tokens: 300", "max_tokens: 301", id="max_tokens"),
        pytest.param("Be {{", "be {{", id="one letter of the prompt"),
        pytest.param("tone: calm", "tone: loud", id="a var that the prompt prints"),
        pytest.param("[a, b]", "[a, c]", id="a label"),
        pytest.param("[a, b]", "[b, a]", id="the order of the labels"),
        pytest.param("  max_tokens", "  system: x\n  max_tokens", id="system"),
        pytest.param("  max_tokens", "  params: {stop_sequences: [x]}\n  max_tokens", id="params"),
    ],
)
def test_another_question_is_another_recipe(job: Loader, old: str, new: str) -> None:
    assert job(FULL).recipe != job(FULL.replace(old, new)).recipe


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("day: today", "day: yesterday", id="a var that only names the path"),
        pytest.param("day: today", "day: today, unused: x", id="a var nobody reads"),
        pytest.param("name: tickets", "name: other", id="name"),
        pytest.param("table: answers", "table: other", id="table"),
        pytest.param("[account, id]", "id", id="key"),
        pytest.param("max_failed: 0.1", "max_failed: 0.2", id="limits"),
        pytest.param("max_attempts: 3", "max_attempts: 5", id="retry"),
        pytest.param("  key:", "  keep: [x]\n  key:", id="keep"),
        pytest.param("table: answers", "table: answers  # comment", id="a comment"),
        pytest.param("name: tickets\n", "\nname: 'tickets'\n", id="the way it is written"),
    ],
)
def test_the_same_question_is_the_same_recipe(job: Loader, old: str, new: str) -> None:
    assert job(FULL).recipe == job(FULL.replace(old, new)).recipe


def test_the_order_of_params_does_not_change_the_recipe(job: Loader) -> None:
    text = PLAIN.replace("  max_tokens", "  params: {stop_sequences: [x], service_tier: auto}\n  max_tokens")
    other = PLAIN.replace("  max_tokens", "  params: {service_tier: auto, stop_sequences: [x]}\n  max_tokens")

    assert job(text).recipe == job(other).recipe


def test_the_recipe_of_a_known_job_does_not_change(job: Loader) -> None:
    # A change of this hash makes failed rows go again and answered ones count as older: never by accident.
    assert job(FULL).recipe == "7b0e72c71b4ad704"


# -- what is refused -------------------------------------------------------------------------------------------------


def without(text: str, field: str) -> str:
    return "".join(line for line in text.splitlines(keepends=True) if not line.strip().startswith(f"{field}:"))


@pytest.mark.parametrize(
    ("text", "field"),
    [
        pytest.param(without(PLAIN, "name"), "name", id="name"),
        pytest.param(without(PLAIN, "key"), "source.key", id="source.key"),
        pytest.param(without(PLAIN, "model"), "request.model", id="request.model"),
        pytest.param(without(PLAIN, "max_tokens"), "request.max_tokens", id="request.max_tokens"),
        pytest.param(without(PLAIN, "prompt"), "request.prompt", id="request.prompt"),
        pytest.param(PLAIN.replace("table: answers", "{}"), "sink.table", id="sink.table"),
        pytest.param(without(without(PLAIN, "sink"), "table"), "sink", id="sink"),
    ],
)
def test_a_missing_field_is_named(job: Loader, text: str, field: str) -> None:
    assert f"{field}: this field is required" in refusal(job, text)


def test_attachments_without_a_prompt_are_refused(job: Loader) -> None:
    text = without(PLAIN, "prompt").replace("request:\n", "request:\n  turns: said\n  attachments: [{image: photo}]\n")

    assert "request.attachments: they are sent in the turn of the prompt, and there is none" in refusal(job, text)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        pytest.param("source:", "sorce:", "line 3: sorce: unknown field; did you mean 'source'?", id="a section"),
        pytest.param(
            "max_tokens",
            "max_token",
            "line 8: request.max_token: unknown field; did you mean 'max_tokens'?",
            id="a field",
        ),
        pytest.param("table:", "tabel:", "line 11: sink.tabel: unknown field; did you mean 'table'?", id="the table"),
        pytest.param(
            "  table: answers",
            "  table: answers\nlimits:\n  max_fail: 1",
            "line 13: limits.max_fail: unknown field; did you mean 'max_failed'?",
            id="a limit",
        ),
        pytest.param(
            "  key:",
            "  zzzz: 1\n  key:",
            "source.zzzz: unknown field (known: path, format, query, database",
            id="nothing like it is known",
        ),
        pytest.param(
            "  table: answers",
            "  table: answers\noutput:\n  zzzz: 1",
            "output.zzzz: unknown field (known: labels, schema, tool, columns",
            id="fields by the names that they have in a job file",
        ),
        pytest.param(
            "  table: answers",
            "  table: answers\noutput:\n  shema: {}",
            "output.shema: unknown field; did you mean 'schema'?",
            id="a field that is called otherwise in Python",
        ),
    ],
)
def test_a_misspelt_field_is_named_with_its_line_and_the_likely_one(job: Loader, old: str, new: str, said: str) -> None:
    message = refusal(job, PLAIN.replace(old, new))

    assert "job.yaml" in message
    assert said in message


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        pytest.param("name: tickets", "name: My Tickets", "line 1: name: ", id="a name with blanks"),
        pytest.param("name: tickets", "name: 5", "line 1: name: ", id="a number as a name"),
        pytest.param("name: tickets", f"name: {'a' * 64}", "line 1: name: ", id="a name that is too long"),
        pytest.param("max_tokens: 300", "max_tokens: 0", "line 8: request.max_tokens: ", id="no tokens"),
        pytest.param("max_tokens: 300", "max_tokens: -1", "line 8: request.max_tokens: ", id="negative tokens"),
        pytest.param("max_tokens: 300", "max_tokens: 1.5", "line 8: request.max_tokens: ", id="half a token"),
        pytest.param("max_tokens: 300", "max_tokens: '300'", "line 8: request.max_tokens: ", id="tokens as text"),
        pytest.param("max_tokens: 300", "max_tokens: true", "line 8: request.max_tokens: ", id="tokens as truth"),
        pytest.param("max_tokens: 300", "max_tokens: many", "line 8: request.max_tokens: ", id="tokens as a word"),
        pytest.param("max_tokens: 300", "max_tokens:", "line 8: request.max_tokens: ", id="tokens left empty"),
        pytest.param(
            "max_tokens: 300", "max_tokens: 300001", "line 8: request.max_tokens: ", id="more than any model has"
        ),
        pytest.param("[account, id]", "[]", "line 5: source.key: ", id="no key column"),
        pytest.param("[account, id]", "['']", "line 5: source.key", id="an empty key column"),
        pytest.param("in/{{ vars.day }}.csv", "[]", "line 4: source.path: ", id="no path"),
        pytest.param(
            "in/{{ vars.day }}.csv",
            "''",
            "line 4: source.path",
            id="an empty path",
        ),
        pytest.param("in/{{ vars.day }}.csv", "5", "line 4: source.path: ", id="a number as a path"),
        pytest.param("table: answers", "table: 'my answers'", "line 11: sink.table: ", id="a table with a blank"),
        pytest.param("table: answers", "table: 'a; DROP TABLE jobs'", "line 11: sink.table: ", id="SQL as a table"),
        pytest.param(
            "  table: answers", "  table: a\nsource: x", "field 'source' is given twice", id="a section twice"
        ),
        pytest.param("sink:\n  table: answers", "sink: answers", "line 10: sink: ", id="a text as a section"),
        pytest.param("  key:", "  keep: [a, a]\n  key:", "source.keep: names 'a' more than once", id="kept twice"),
        pytest.param("  key:", "  nulls: maybe\n  key:", "line 5: source.nulls: ", id="an unknown policy for nulls"),
        pytest.param("  max_tokens", "  params: [a]\n  max_tokens", "line 8: request.params: ", id="params as a list"),
    ],
)
def test_a_wrong_value_is_named_with_its_line_and_field(job: Loader, old: str, new: str, said: str) -> None:
    message = refusal(job, PLAIN.replace(old, new))

    assert "job.yaml" in message
    assert said in message


@pytest.mark.parametrize(
    ("more", "said"),
    [
        pytest.param("output: {labels: [only]}", "at least two labels", id="one label"),
        pytest.param("output: {labels: []}", "at least two labels", id="no labels"),
        pytest.param("output: {labels: [Yes, ' yes ']}", "equals another label, ignoring case", id="twins"),
        pytest.param("output: {labels: [a, '']}", "output.labels.1: ", id="an empty label"),
        pytest.param("output: {labels: [1, 2]}", "output.labels.0: ", id="numbers as labels"),
        pytest.param("limits: {max_failed: 1.1}", "limits.max_failed: ", id="a share above one"),
        pytest.param("limits: {max_failed: -0.1}", "limits.max_failed: ", id="a share below zero"),
        pytest.param("limits: {max_batch_requests: 0}", "limits.max_batch_requests: ", id="empty batches"),
        pytest.param("limits: {max_batch_requests: 100001}", "limits.max_batch_requests: ", id="over the API's count"),
        pytest.param("limits: {max_batch_bytes: 256000001}", "limits.max_batch_bytes: ", id="over the API's bytes"),
        pytest.param("retry: {max_attempts: 0}", "retry.max_attempts: ", id="no attempt"),
        pytest.param("vars: {a: 1}", "field 'vars' is given twice", id="vars twice"),
    ],
)
def test_values_out_of_range_are_refused_by_field(job: Loader, more: str, said: str) -> None:
    message = refusal(job, PLAIN + more + "\n")

    assert "job.yaml line 12" in message
    assert said in message


@pytest.mark.parametrize("field", sorted(FUTURE_FIELDS), ids=str)
def test_a_field_of_a_later_version_is_refused_by_name(job: Loader, field: str) -> None:
    section, _, inner = field.partition(".")
    later = f"{section}: {{{inner}: 1}}\n" if inner else f"{section}: {{x: 1}}\n"
    text = PLAIN.replace(f"{section}:\n", f"{section}:\n  {inner}: 1\n") if f"{section}:\n" in PLAIN else PLAIN + later

    message = refusal(job, text)

    assert f"{field}: this version does not have" in message
    assert "yet; remove the field" in message
    assert "job.yaml line " in message


@pytest.mark.parametrize(
    ("value", "said"),
    [
        pytest.param("true", "canary: ", id="on without saying how"),
        pytest.param("{rows: 0}", "canary.rows: ", id="no rows"),
        pytest.param("{max_failed: 2}", "canary.max_failed: ", id="more than all"),
        pytest.param("{row: 5}", "did you mean 'rows'?", id="misspelt"),
    ],
)
def test_a_wrong_canary_is_refused(job: Loader, value: str, said: str) -> None:
    assert said in refusal(job, f"{PLAIN}canary: {value}\n")


def test_several_wrong_fields_are_all_reported_at_once(job: Loader) -> None:
    message = refusal(job, PLAIN.replace("max_tokens: 300", "max_tokens: 0").replace("tickets", "Bad Name"))

    assert "request.max_tokens" in message
    assert "line 1: name" in message


@pytest.mark.parametrize(
    ("text", "given", "said"),
    [
        pytest.param(
            PLAIN, {"dya": "x"}, "--var dya: the job declares no such var (it declares: day, tone)", id="flag"
        ),
        pytest.param(
            PLAIN.replace("in/{{ vars.day }}", "in/{{ vars.dya }}"),
            {},
            "line 4: source.path: vars.dya is not among the declared vars (day, tone); "
            "in this field a template can use only vars",
            id="in a path",
        ),
        pytest.param(
            PLAIN.replace("in/{{ vars.day }}", "in/{{ day }}"), {}, "source.path: day is not a var", id="bare name"
        ),
        pytest.param(
            PLAIN.replace("answers", "'{{ body }}'"), {}, "line 11: sink.table: body is not a var", id="a column"
        ),
        pytest.param(PLAIN.replace("in/{{ vars.day }}", "in/{{ vars.day"), {}, "line 4: source.path", id="unclosed"),
        pytest.param(PLAIN.replace("{day: today, tone: calm}", "[a]"), {}, "line 2: vars: must map names", id="a list"),
        pytest.param(PLAIN.replace("day: today", "day: [a]"), {}, "line 2: vars: must map names", id="a list in it"),
        pytest.param(PLAIN.replace("day: today", "day:"), {}, "line 2: vars: must map names", id="an empty var"),
    ],
)
def test_a_wrong_var_is_named(job: Loader, text: str, given: dict[str, str], said: str) -> None:
    assert said in refusal(job, text, **given)


def test_a_job_file_that_is_missing_or_not_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes("name: ä\n".encode("latin-1"))

    with pytest.raises(JobError, match=r"nope\.yaml: cannot read the job file: No such file"):
        load(tmp_path / "nope.yaml", variables={}, today=TODAY)
    with pytest.raises(JobError, match=r"latin\.yaml: byte [0-9]+ is not valid UTF-8; save the job file as UTF-8 text"):
        load(tmp_path / "latin.yaml", variables={}, today=TODAY)
    with pytest.raises(JobError, match="cannot read the job file: Is a directory"):
        load(tmp_path, variables={}, today=TODAY)


def test_a_wrong_kept_column_is_refused_without_a_crash(job: Loader) -> None:
    assert "source.keep" in refusal(job, PLAIN.replace("  key:", "  keep: [[a]]\n  key:"))


@pytest.mark.parametrize("system", ["''", "5"], ids=["empty", "a number"])
def test_a_wrong_system_prompt_is_reported_by_the_name_of_its_field(job: Loader, system: str) -> None:
    message = refusal(job, PLAIN.replace("  max_tokens", f"  system: {system}\n  max_tokens"))

    assert "line 8: request.system: " in message
    assert "constrained-str" not in message


def test_a_key_column_named_twice_is_refused(job: Loader) -> None:
    assert "source.key" in refusal(job, PLAIN.replace("[account, id]", "[id, id]"))


def test_a_retried_error_that_does_not_exist_is_refused(job: Loader) -> None:
    assert "expird" in refusal(job, PLAIN + "retry: {errors: [expird]}\n")


def test_a_number_too_large_for_json_is_refused_without_a_crash(job: Loader) -> None:
    text = PLAIN.replace("tone: calm", f"tone: {10**20}")

    assert "vars" in refusal(job, text)


def test_a_folder_whose_name_looks_like_a_pattern_is_a_folder(tmp_path: Path) -> None:
    from pipeline.source.rows import Rows

    folder = tmp_path / "run[1]"
    (folder / "in").mkdir(parents=True)
    (folder / "in/a.csv").write_text("account,id,body\nx,1,hello\n")
    (folder / "job.yaml").write_text(PLAIN.replace("in/{{ vars.day }}.csv", "in/*.csv"))

    loaded = load(folder / "job.yaml", variables={}, today=TODAY)

    assert [file.name for file in Rows(loaded.source).inputs] == ["a.csv"]


def test_the_results_table_cannot_have_the_name_of_a_table_of_the_state_database() -> None:
    assert {*metadata.tables, "alembic_version"} == STATE_TABLES
