"""The section `rounds` of a job, and pauses that go on, from a file and from Python."""

import inspect
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import orjson
import pytest

from pipeline import Job
from pipeline.errors import JobError
from pipeline.job.load import load

PLAIN = """
name: tickets
source: {path: in.csv, key: id}
request: {model: claude-haiku-4-5, max_tokens: 300, prompt: "{{ body }}"}
sink: {table: answers}
"""
WHOLE = "rounds: {max: 4, tools: {lookup: mytools.lookup}, timeout: 2.5, max_output_bytes: 5000, wait: 2h}\n"
Loader = Callable[[str], Job]


@pytest.fixture
def job(tmp_path: Path) -> Loader:
    """Loads a job file with these lines after the required ones."""

    def made(more: str) -> Job:
        file = tmp_path / "job.yaml"
        file.write_text(PLAIN + more, encoding="utf-8")
        return load(file, variables={}, today=date(2026, 11, 29))

    return made


def lookup(number: str) -> str:
    return number


def in_python(**rounds: Any) -> Job:
    return Job.model_validate(
        {
            "name": "j",
            "source": {"path": "a.csv", "key": "id"},
            "request": {"model": "m", "max_tokens": 1, "prompt": "{{ text }}"},
            "sink": {"table": "t"},
            "rounds": rounds,
        }
    )


def test_a_job_without_rounds_has_the_documented_defaults(job: Loader) -> None:
    loaded = job("")

    assert loaded.rounds.tools == {}
    assert (loaded.rounds.max, loaded.rounds.timeout, loaded.rounds.max_output_bytes) == (6, 30, 20_000)
    assert loaded.rounds.wait_seconds == 600
    assert loaded.rounds.folder is None
    assert not loaded.retry.change.continues_pauses


def test_every_field_is_read_and_modules_are_looked_for_beside_the_job_file(job: Loader, tmp_path: Path) -> None:
    rounds = job(WHOLE).rounds

    assert rounds.tools == {"lookup": "mytools.lookup"}
    assert (rounds.max, rounds.timeout, rounds.max_output_bytes) == (4, 2.5, 5000)
    assert rounds.wait_seconds == 7200
    assert rounds.folder == str(tmp_path)
    assert job("rounds: {folder: lib}").rounds.folder == str(tmp_path / "lib")


def test_rounds_are_stored_with_the_job_and_change_neither_its_recipe_nor_anything_else(job: Loader) -> None:
    loaded = job(WHOLE + "retry: {change: {paused: {continue: true}}}")

    again = Job.model_validate(orjson.loads(orjson.dumps(loaded.model_dump(mode="json"))))

    assert again == loaded
    assert loaded.recipe == job("").recipe


def test_a_function_in_python_is_kept_and_stored_by_its_name() -> None:
    made = in_python(tools={"lookup": lookup, "other": lambda: 1})

    stored = orjson.loads(orjson.dumps(made.model_dump(mode="json")))

    assert made.rounds.tools["lookup"] is lookup
    assert stored["rounds"]["tools"]["lookup"] == f"{__name__}.lookup"
    assert stored["rounds"]["tools"]["other"].endswith(".<lambda>")
    assert Job.model_validate(stored).rounds.tools == stored["rounds"]["tools"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        pytest.param("rounds: {maxi: 3}", "rounds.maxi: unknown field; did you mean 'max'?", id="a misspelt field"),
        pytest.param("round: {max: 3}", "round: unknown field; did you mean 'rounds'?", id="a misspelt section"),
        pytest.param("rounds: {max: 0}", "rounds.max: ", id="no round"),
        pytest.param("rounds: {max: 1.5}", "rounds.max: ", id="half a round"),
        pytest.param("rounds: {timeout: 0}", "rounds.timeout: ", id="no time"),
        pytest.param("rounds: {timeout: .inf}", "rounds.timeout: ", id="endless time"),
        pytest.param("rounds: {max_output_bytes: 1}", "rounds.max_output_bytes: ", id="no room for a result"),
        pytest.param("rounds: {wait: 10}", "rounds.wait: must be a number with s, m or h, for example", id="no unit"),
        pytest.param("rounds: {wait: -1m}", "rounds.wait: must be a number with s, m or h", id="a negative wait"),
        pytest.param("rounds: {folder: 5}", "rounds.folder: ", id="a number as a folder"),
        pytest.param("rounds: {tools: [lookup]}", "rounds.tools: ", id="tools as a list"),
        pytest.param(
            "rounds: {tools: {lookup: lookup}}",
            "rounds.tools.lookup: must name a Python function as MODULE.FUNCTION, for example mytools.lookup "
            "(it is 'lookup')",
            id="a name without a module",
        ),
        pytest.param("rounds: {tools: {lookup: 5}}", "rounds.tools.lookup: must name a Python", id="a number"),
        pytest.param("rounds: {tools: {lookup: mytools/lookup.py}}", "rounds.tools.lookup: must name", id="a path"),
        pytest.param("rounds: {tools: {lookup: }}", "rounds.tools.lookup: must name", id="nothing"),
        pytest.param("retry: {change: {paused: {contnue: true}}}", "did you mean 'continue'?", id="a misspelt pause"),
        pytest.param("retry: {change: {paused: true}}", "retry.change.paused: ", id="a pause without its field"),
        pytest.param("retry: {change: {paused: {continue: maybe}}}", "retry.change.paused.continue: ", id="maybe"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_refused_by_its_field(job: Loader, more: str, said: str) -> None:
    with pytest.raises(JobError) as refused:
        job(more + "\n")

    assert "job.yaml line 6: " in str(refused.value)
    assert said in str(refused.value)


def test_a_class_is_no_function() -> None:
    whole = orjson.loads(orjson.dumps(in_python(max=2).model_dump(mode="json")))

    with pytest.raises(JobError, match=r"^rounds\.tools\.lookup: must name a Python function"):
        Job(**{**whole, "rounds": {"tools": {"lookup": Path}}})


def test_a_pause_that_goes_on_is_no_change_of_an_outcome(job: Loader) -> None:
    retry = job("retry: {change: {paused: {continue: true}}}").retry

    assert retry.change.continues_pauses
    assert retry.change.of("paused") is None
    assert not job("retry: {change: {paused: {continue: false}}}").retry.change.continues_pauses


def test_help_shows_the_fields_of_rounds() -> None:
    lines = (inspect.getdoc(Job) or "").splitlines()

    assert "rounds.max: whole number; default 6" in lines
    assert "rounds.tools: mapping of text to function | text; default {}" in lines
    assert "retry.change.paused.continue*: true | false" in lines
