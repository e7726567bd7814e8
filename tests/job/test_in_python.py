"""A job that is made in Python is refused in sentences, and shows its fields."""

import inspect
from typing import Any

import polars as pl
import pytest

from pipeline import Job
from pipeline.errors import InputError
from pipeline.job.model import Source

REQUEST = {"model": "claude-haiku-4-5", "max_tokens": 10, "prompt": "{{ text }}"}
ROWS = pl.DataFrame({"id": [1], "text": ["x"], "team": ["a"]})


def made(**fields: Any) -> Job:
    whole = {"name": "j", "source": {"path": "a.csv", "key": "id"}, "request": REQUEST, "sink": {"table": "t"}}
    return Job(**{**whole, **fields})


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        pytest.param(
            {"sink": {"tabel": "t"}}, "sink.tabel: unknown field; did you mean 'table'?", id="a misspelt field"
        ),
        pytest.param({"limit": {}}, "limit: unknown field; did you mean 'limits'?", id="a misspelt section"),
        pytest.param({"request": {**REQUEST, "max_tokens": "ten"}}, "request.max_tokens: ", id="a wrong value"),
        pytest.param(
            {"request": {"model": "m"}}, "request.max_tokens: this field is required; request.prompt: ", id="two"
        ),
        pytest.param({"retry": {"change": {"refused": {"modle": "m"}}}}, "did you mean 'model'?", id="deep inside"),
        pytest.param({"source": ROWS}, "source.key: this field is required", id="a frame without key"),
        pytest.param({"keep": ["team"]}, "keep: unknown field", id="keep beside a path"),
    ],
)
def test_a_wrong_job_is_refused_in_a_sentence_for_each_field(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as refused:
        made(**fields)

    assert said in str(refused.value)
    assert "validation error" not in str(refused.value)
    assert refused.value.__cause__ is None


def test_a_refusal_shows_no_secret() -> None:
    with pytest.raises(InputError) as refused:
        made(source={"query": "SELECT 1", "database": "postgresql://u:hunter2@host/db", "key": "id"})

    assert "hunter2" not in str(refused.value)


def test_key_and_keep_stand_beside_a_frame() -> None:
    job = made(source=ROWS, key="id", keep=["team", {"text": "asked"}])

    assert job.source == Source(frame=ROWS, key=["id"], keep={"team": "team", "text": "asked"})


def test_help_shows_every_field_with_its_type_and_default() -> None:
    lines = (inspect.getdoc(Job) or "").splitlines()

    assert "name*: text" in lines
    assert "request.max_tokens*: whole number | text" in lines
    assert "request.messages.N.role*: user | assistant" in lines
    assert "prices.NAME.discount: number; default None" in lines
    assert "retry.change.errored.model*: text | list of text" in lines
    assert "limits.max_batch_requests: whole number; default 25000" in lines
