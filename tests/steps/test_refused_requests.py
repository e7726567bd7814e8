"""A job that the API would refuse is refused before anything is sent; a row that it would refuse is invalid."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pytest
from PIL import Image
from pypdf import PdfWriter
from ruamel.yaml import YAML

from pipeline.emulator import RunningEmulator, Settings, start
from tests.cli.test_bad_input import Api, Command, assert_refused, command, folder  # noqa: F401  # fixtures

WITHOUT_EYES = "claude-sonnet-4-6"
ROWS = [{"id": "1", "body": "The ship sank."}, {"id": "2", "body": "It rained."}]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningEmulator]:
    settings = Settings(models_without_vision=[WITHOUT_EYES], models_without_batch=["claude-opus-4-6"])
    with start(tmp_path_factory.mktemp("api") / "emu", settings=settings) as running:
        yield running


@pytest.fixture
def api(running: RunningEmulator) -> Api:
    return Api(running)


@pytest.fixture
def job(folder: Path) -> Callable[..., None]:  # noqa: F811  # a fixture
    """Return a function that writes job.yaml and its rows. fields: of `request`, or other sections as a whole."""

    def write(rows: list[dict[str, Any]] | None = None, **fields: Any) -> None:
        pl.DataFrame(rows or ROWS).write_parquet(folder / "rows.parquet")
        whole: dict[str, Any] = {
            name: fields.pop(name) for name in ("output", "limits", "prices", "api", "retry") if name in fields
        }
        request: dict[str, Any] = {
            "model": "claude-sonnet-5",
            "max_tokens": 300,
            "prompt": "Sum up: {{ body }}",
        } | fields
        made = {
            "name": "tickets",
            "source": {"path": "rows.parquet", "key": "id"},
            "request": {name: value for name, value in request.items() if value is not None},
            "sink": {"table": "answers"},
            **whole,
        }
        with open(folder / "job.yaml", "w") as out:
            YAML().dump(made, out)

    return write


Job = Callable[..., None]


def schema(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}


TOOL = {"name": "note", "input_schema": schema(total={"type": "integer"})}


@pytest.mark.parametrize("name", ["check", "run"])
@pytest.mark.parametrize(
    ("fields", "said"),
    [
        pytest.param(
            {"model": "claude-sonet-5"}, ["request.model", "did you mean 'claude-sonnet-5"], id="no such model"
        ),
        pytest.param(
            {"model": "claude-3-haiku-20240307"}, ["request.model", "was retired on 2026-04-20"], id="retired"
        ),
        pytest.param(
            {"model": "claude-opus-4-6"}, ["request.model", "does not support batches"], id="a model without batches"
        ),
        pytest.param(
            {"max_tokens": 200_000}, ["request.max_tokens: 200000", "(128,000)", "request.betas allows"], id="tokens"
        ),
        pytest.param(
            {"model": WITHOUT_EYES, "attachments": [{"image": "body"}]},
            ["request.attachments", "does not support images"],
            id="a model without vision",
        ),
        pytest.param(
            {"model": "claude-haiku-4-5", "max_tokens": 2_000, "params": {"thinking": {"type": "adaptive"}}},
            ["request.params.thinking.type", "does not support 'adaptive' (it supports disabled, enabled)"],
            id="thinking that the model does not have",
        ),
        pytest.param(
            {"model": "claude-haiku-4-5", "params": {"thinking": {"type": "enabled", "budget_tokens": 1_024}}},
            ["request.params.thinking.budget_tokens: 1024 must be below max_tokens (300)"],
            id="a thinking budget above max_tokens",
        ),
        pytest.param(
            {"model": "claude-haiku-4-5", "params": {"output_config": {"effort": "low"}}},
            ["request.params.output_config.effort", "does not support effort"],
            id="effort",
        ),
        pytest.param(
            {"model": "claude-opus-5-5", "params": {"tools": [TOOL]}, "output": {"tool": "note"}},
            ["request.params.tool_choice", "cannot be forced to call a tool", "output.schema"],
            id="a forced tool that the model does not take",
        ),
        pytest.param(
            {"output": {"schema": schema(total={"type": "integer", "minimum": 0})}},
            ["output.schema: properties.total.minimum", "structured outputs do not support `minimum`"],
            id="a keyword that structured outputs do not take",
        ),
        pytest.param(
            {"output": {"schema": schema(status={"type": "string"})}},
            [
                "property 'status' clashes with a column of every results table",
                "output.columns: {status: answer_status}",
            ],
            id="a property called as a column of ours",
        ),
        pytest.param(
            {"output": {"schema": schema(a={"type": "string"}), "columns": {"b": "c"}}},
            ["output.schema", "'b'"],
            id="a rename of what is not there",
        ),
        pytest.param(
            {"output": {"tool": "nota"}, "params": {"tools": [TOOL]}},
            ["output.tool: 'nota' is not a tool with an input_schema", "note"],
            id="no such tool",
        ),
        pytest.param(
            {"output": {"tool": "note"}, "params": {"tools": [TOOL], "tool_choice": {"type": "auto"}}},
            ["request.params.tool_choice: output.tool forces note"],
            id="a tool that is forced and is not",
        ),
        pytest.param({"output": {"labels": ["a", "b"], "schema": schema()}}, ["labels and schema"], id="two outputs"),
        pytest.param(
            {"cache": "1h"}, ["request.cache: the requests share no text before the prompt"], id="nothing to cache"
        ),
        pytest.param(
            {"messages": [{"role": "assistant", "content": "Hello."}]},
            ["request.messages", "must have the role user"],
            id="turns that begin with the assistant",
        ),
        pytest.param({"messages": [{"role": "bot", "content": "x"}]}, ["request.messages.0.role"], id="a role"),
        pytest.param({"turns": "history"}, ["request.turns names column 'history'"], id="no such column of turns"),
        pytest.param(
            {"attachments": [{"image": "a", "document": "b"}]}, ["request.attachments.0", "name one column"], id="both"
        ),
        pytest.param(
            {"betas": ["x-2026-01-01"], "params": {"context_managment": {}}},
            ["request.params.context_managment", "did you mean 'context_management'"],
            id="a misspelt field of a beta",
        ),
        pytest.param(
            {"params": {"context_management": {}}},
            ["request.params.context_management"],
            id="a beta field without beta",
        ),
        pytest.param(
            {"attachments": [{"document": "body", "citations": True}], "output": {"labels": ["a", "b"]}},
            ["request.attachments: the API does not allow citations together with a format of the answer"],
            id="citations and labels",
        ),
        pytest.param(
            {"params": {"output_config": {"format": {"type": "json_schema", "schema": schema(a={"minLength": 1})}}}},
            ["request.params.output_config.format.schema: properties.a", "minLength"],
            id="a keyword in a format of their own",
        ),
        pytest.param({"params": {"workspace_id": "w"}}, ["request.params.workspace_id", "a header"], id="a header"),
        pytest.param(
            {"betas": ["x"], "params": {"fallbacks": []}}, ["request.params.fallbacks", "retry.change"], id="fallbacks"
        ),
        pytest.param(
            {"messages": [{"role": "user", "content": [{"type": "text", "txt": "x"}]}]},
            ["request.messages.0.content.0.txt", "did you mean 'text'"],
            id="a misspelt field of a block",
        ),
        pytest.param(
            {"messages": [{"role": "user", "content": [{"type": "txt", "text": "x"}]}]},
            ["request.messages.0.content.0.type: must be one of", "'image'"],
            id="no such block",
        ),
        pytest.param({"api": {"client": "bedrock"}}, ["api.client", "aws (Claude Platform on AWS)"], id="bedrock"),
        pytest.param({"api": {"client": "vertex"}}, ["api.client", "google (Claude on Google Cloud)"], id="vertex"),
        pytest.param({"api": {"client": "foundry"}}, ["api.client", "no batches of Claude requests"], id="foundry"),
        pytest.param(
            {"model": "{{ 'claude-haiku-4-5' if id == '1' else 'claude-9' }}"},
            ["the API knows no model 'claude-9'"],
            id="a model that a row names",
        ),
        pytest.param(
            {"retry": {"change": {"refused": {"model": "claude-9"}}}},
            ["the API knows no model 'claude-9'"],
            id="a model to ask after a refusal",
        ),
        pytest.param(
            {"retry": {"change": {"truncated": {"max_tokens": "1x"}}}}, ["greater than 1x"], id="no longer answer"
        ),
    ],
)
def test_a_job_that_the_model_would_refuse_is_refused(
    command: Command,  # noqa: F811  # a fixture
    api: Api,
    job: Job,
    name: str,
    fields: dict[str, Any],
    said: list[str],
) -> None:
    job(**fields)

    ran = command(name, "job.yaml")

    assert_refused(ran, api, *said)


@pytest.mark.parametrize("month", [False, True], ids=["of the run", "of the month"])
def test_a_budget_for_a_model_without_a_price_is_refused_until_the_job_gives_one(
    command: Command,  # noqa: F811  # a fixture
    api: Api,
    job: Job,
    monkeypatch: pytest.MonkeyPatch,
    month: bool,
) -> None:
    if month:
        monkeypatch.setenv("BATCH_MONTHLY_BUDGET_USD", "5")
    limits = {} if month else {"max_cost_usd": 5}
    job(model="claude-of-next-year", limits=limits)
    assert_refused(command("check", "job.yaml"), api, "no batch price is known for claude-of-next-year", "under prices")

    job(limits=limits, prices={"claude-sonnet-5": {"input": 0.5, "output": 2.5}})
    ran = command("run", "job.yaml")

    assert ran.code == 0, ran.err


def test_a_deprecated_model_is_reported_with_its_date(command: Command, job: Job) -> None:  # noqa: F811  # a fixture
    job(model="claude-sonnet-4-5")

    checked = command("check", "job.yaml")

    assert checked.code == 0
    assert (
        "warning  request.model: claude-sonnet-4-5-20250929 is deprecated and will be retired on 2026-11-30"
        in checked.err
    )


def test_a_prefix_too_short_for_the_cache_is_reported(command: Command, job: Job) -> None:  # noqa: F811  # a fixture
    job(system="Be brief.", cache="1h")

    checked = command("check", "job.yaml")

    assert checked.code == 0
    assert "caches from 1,024 on: nothing will be cached" in checked.err


def test_check_proves_all_but_the_models_when_the_api_does_not_answer(
    command: Command,  # noqa: F811  # a fixture
    job: Job,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ANTHROPIC_BASE_URL", "http://127.0.0.1:9")
    job()

    checked = command("check", "job.yaml")

    assert checked.code == 0
    assert "warning  the models were not checked: no answer from http://127.0.0.1:9" in checked.err


def test_check_proves_all_but_the_models_without_a_key(
    command: Command,  # noqa: F811  # a fixture
    job: Job,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    job()

    checked = command("check", "job.yaml")

    assert checked.code == 0
    assert "warning  the models were not checked: no API key" in checked.err


# -- rows ------------------------------------------------------------------------------------------------------------


def png(path: Path, size: tuple[int, int] = (8, 8)) -> Path:
    Image.new("RGB", size, "white").save(path, "PNG")
    return path


def pdf(path: Path, pages: int) -> Path:
    writer = PdfWriter()
    for _ in range(pages):
        writer.add_blank_page(72, 72)
    writer.write(path)
    return path


@pytest.mark.parametrize(
    ("kind", "value", "reason"),
    [
        pytest.param("image", "note.txt", "'note.txt' is plain text", id="an image that is none"),
        pytest.param("image", "broken.png", "broken.png", id="a broken image"),
        pytest.param("image", "huge.png", "8000", id="an image with too many pixels"),
        pytest.param("document", "long.pdf", "600", id="a PDF with too many pages"),
        pytest.param("image", "file:///etc/passwd", "file: URLs are not accepted", id="a URL of another scheme"),
        pytest.param("image", "../outside.png", "leads out of", id="a path outside"),
        pytest.param("image", "link.png", "leads out of", id="a link that leads outside"),
        pytest.param("image", "missing.png", "missing.png", id="a file that is not there"),
        pytest.param("image", None, "null", id="no file"),
    ],
)
def test_a_wrong_attachment_makes_only_its_row_invalid(
    command: Command,  # noqa: F811  # a fixture
    job: Job,
    folder: Path,  # noqa: F811  # a fixture
    kind: str,
    value: str | None,
    reason: str,
) -> None:
    png(folder.parent / "outside.png")
    (folder / "link.png").symlink_to(folder.parent / "outside.png")
    (folder / "note.txt").write_text("No picture.")
    (folder / "broken.png").write_bytes(png(folder / "good.png").read_bytes()[:20])
    png(folder / "huge.png", (8_001, 1))
    pdf(folder / "long.pdf", 601)
    pdf(folder / "good.pdf", 1)
    good = "good.png" if kind == "image" else "good.pdf"
    job([{"id": "1", "body": "x", "file": value}, {"id": "2", "body": "y", "file": good}], attachments=[{kind: "file"}])

    ran = command("run", "job.yaml")
    answers = [orjson.loads(line) for line in command("export", "job.yaml").out.splitlines()]

    assert ran.code == 1
    assert [answer["status"] for answer in answers] == ["invalid", "succeeded"]
    assert reason in answers[0]["error_message"]


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        pytest.param("no JSON", "must hold turns as JSON", id="no JSON"),
        pytest.param('{"role": "user"}', "must hold a list of turns", id="no list"),
        pytest.param('["hello"]', "turn 1: must be {role, content}", id="no turn"),
        pytest.param('[{"role": "bot", "content": "x"}]', "turn 1: role must be 'user' or 'assistant'", id="a role"),
        pytest.param('[{"role": "user", "content": " "}]', "turn 1: content must be", id="an empty turn"),
        pytest.param('[{"role": "user", "text": "x"}]', "turn 1: unknown field 'text'", id="a field"),
        pytest.param('[{"role": "assistant", "content": "x"}]', "begins with a turn of role 'assistant'", id="order"),
    ],
)
def test_malformed_turns_make_only_their_row_invalid(
    command: Command,  # noqa: F811  # a fixture
    job: Job,
    turns: str,
    reason: str,
) -> None:
    good = '[{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Yes?"}]'
    job([{"id": "1", "body": "x", "history": turns}, {"id": "2", "body": "y", "history": good}], turns="history")

    ran = command("run", "job.yaml")
    answers = [orjson.loads(line) for line in command("export", "job.yaml").out.splitlines()]

    assert ran.code == 1
    assert [answer["status"] for answer in answers] == ["invalid", "succeeded"]
    assert reason in answers[0]["error_message"]


@pytest.mark.parametrize(
    ("field", "template", "reason"),
    [
        pytest.param("max_tokens", "{{ n }}", "request.max_tokens is 'many' for this row", id="tokens as a word"),
        pytest.param("model", "{{ m }}", "request.model is empty for this row", id="no model"),
    ],
)
def test_a_wrong_model_or_limit_makes_only_its_row_invalid(
    command: Command,  # noqa: F811  # a fixture
    job: Job,
    field: str,
    template: str,
    reason: str,
) -> None:
    rows = [{"id": "1", "body": "x", "n": "many", "m": ""}, {"id": "2", "body": "y", "n": "50", "m": "claude-sonnet-5"}]
    job(rows, **{field: template})

    ran = command("run", "job.yaml")
    answers = [orjson.loads(line) for line in command("export", "job.yaml").out.splitlines()]

    assert ran.code == 1
    assert [answer["status"] for answer in answers] == ["invalid", "succeeded"]
    assert reason in answers[0]["error_message"]
