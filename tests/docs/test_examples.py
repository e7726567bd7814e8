"""The sample jobs do what they show, and docs/messages-api.md leaves out nothing that the SDK knows."""

import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import date, datetime
from pathlib import Path
from typing import Any, get_args, get_type_hints

import orjson
import polars as pl
import pytest
from anthropic.types import ContentBlockParam
from anthropic.types.beta.beta_output_config_param import BetaOutputConfigParam
from anthropic.types.beta.message_create_params import MessageCreateParamsNonStreaming as BetaParams
from anthropic.types.message_create_params import MessageCreateParamsNonStreaming as Params
from polars.testing import assert_frame_equal
from pydantic import ValidationError
from sqlalchemy import inspect, select

from pipeline.errors import JobError
from pipeline.job.load import load
from pipeline.job.model import Job
from pipeline.request.build import RequestBuilder
from pipeline.request.check import check_params
from pipeline.sink.table import ResultsTable
from pipeline.state.jobs import job_named
from pipeline.storage.folders import LocalFolder
from tests.conftest import World

TESTS = Path(__file__).parents[1]
SAMPLES = TESTS.parent / "sample_data"
EXAMPLES = sorted(path.stem for path in (SAMPLES / "jobs").glob("*.yaml"))
ON_SQLITE = pytest.mark.parametrize("world", ["SQLite"], indirect=True)  # what no database has a part in
DOC = (TESTS.parent / "docs" / "messages-api.md").read_text(encoding="utf-8")


def example(name: str) -> Job:
    return load(SAMPLES / "jobs" / f"{name}.yaml", variables={}, today=date(2026, 11, 21))


def answers(world: World, job: Job) -> list[dict[str, Any]]:
    """The rows of the job's results table, as SQL has their values."""
    with world.database.read() as conn:
        row = job_named(conn, job.name)
        assert row is not None
        return [dict(answer._mapping) for answer in conn.execute(select(ResultsTable.of(row).table))]


def of_tools(world: World, job: Job) -> list[dict[str, int]]:
    return [orjson.loads(answer["server_tool_use"]) for answer in answers(world, job)]


# -- the jobs --------------------------------------------------------------------------------------------------------

#: The columns that come of the job's output, with the type that their values have.
COLUMNS: dict[str, dict[str, type]] = {
    "answer_tickets": {"message": str},
    "classify_tickets": {"label": str},
    "context_management": {"server_tool_use": str},
    "contracts": {"citations": str},
    "earlier_blocks": {"message": str},
    "extract_tool": {"what": str, "parcels": int, "loss_eur": float, "still_down": bool, "since": date},
    "few_shot": {"label": str},
    "invoices": {
        "supplier": str,
        "issued_at": datetime,
        "total": float,
        "pieces": int,
        "paid": bool,
        "lines": str,
        "address": str,
        "town": str,
    },
    "long_conversations": {"message": str},
    "photos": {
        "service": str,
        "weight_kg": float,
        "marks": str,
        "agrees_with_note": bool,
        "recipient_name": str,
        "town": str,
    },
    "retry_changes": {"label": str},
    "thinking": {"label": str, "thinking": str},
    "thinking_budget": {"thinking": str},
    "web_search": {"server_tool_use": str},
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_row_of_an_example_succeeds_with_values_of_the_declared_types(world: World, name: str) -> None:
    job = example(name)

    check_params(job)
    finished = world.run(job)

    assert (finished.state, finished.exit_code, set(finished.rows)) == ("finished", 0, {"succeeded"})
    assert world.told("warning") == []
    found = answers(world, job)
    assert len(found) == finished.rows["succeeded"] >= 4
    with world.database.read() as conn:
        declared = {each["name"]: each["type"].python_type for each in inspect(conn).get_columns(job.sink.table)}
    columns = COLUMNS.get(name, {})
    assert {column: declared[column] for column in columns} == columns
    assert {column: {type(answer[column]) for answer in found} for column in columns} == {
        column: {kind} for column, kind in columns.items()
    }


def test_conversations_can_be_made_again(tmp_path: Path) -> None:
    subprocess.run([sys.executable, SAMPLES / "make_conversations.py", tmp_path / "again.parquet"], check=True)

    assert_frame_equal(pl.read_parquet(tmp_path / "again.parquet"), pl.read_parquet(SAMPLES / "conversations.parquet"))


def test_an_example_is_called_like_its_file() -> None:
    assert [example(name).name for name in EXAMPLES] == EXAMPLES


@ON_SQLITE
def test_each_row_is_asked_of_its_own_model_and_for_its_own_length(world: World) -> None:
    job = example("per_row_model")
    builder = RequestBuilder(job)

    world.run(job)

    models = {(answer["priority"], answer["model"]) for answer in answers(world, job)}
    assert models == {("urgent", "claude-sonnet-5"), ("low", "claude-haiku-5-5")}
    row = {"subject": "s", "body": "b"}
    assert builder.params({**row, "priority": "urgent"}).max_tokens == 600
    assert builder.params({**row, "priority": "low"}).max_tokens == 200


@ON_SQLITE
def test_few_shot_turns_are_shared_and_read_from_the_cache(world: World) -> None:
    job = example("few_shot")
    shown = orjson.loads(RequestBuilder(job).params({"subject": "s", "body": "b"}).params)

    world.run(job)

    assert [turn["role"] for turn in shown["messages"]] == ["user", "assistant"] * 3 + ["user"]
    assert shown["messages"][5]["content"][-1]["cache_control"] == {"type": "ephemeral", "ttl": "1h"}
    found = answers(world, job)
    assert sum(answer["cache_write_tokens"] > 0 for answer in found) == 1
    assert sum(answer["cache_read_tokens"] > 0 for answer in found) == len(found) - 1


@ON_SQLITE
def test_a_conversation_ends_with_the_prompt(world: World) -> None:
    job = example("conversations")
    said = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Hello."}]

    finished = world.run(job)

    params = RequestBuilder(job).params({"turns": said, "message": "And now?"}).params
    assert orjson.loads(params)["messages"] == [*said, {"role": "user", "content": "And now?"}]
    assert finished.rows == {"succeeded": 10}


@ON_SQLITE
def test_conversations_that_end_with_the_user_are_sent_without_a_prompt(world: World) -> None:
    job = example("earlier_blocks")
    rows = [orjson.loads(line) for line in (SAMPLES / "earlier_blocks.ndjson").read_bytes().splitlines()]
    builder = RequestBuilder(job)

    finished = world.run(job)

    assert finished.rows == {"succeeded": len(rows)}
    for row in rows:
        sent = orjson.loads(builder.params(row).params)["messages"]
        assert sent == orjson.loads(row["turns"])
        assert sent[-1]["role"] == "user"


@ON_SQLITE
def test_a_compacted_conversation_goes_on_in_a_second_job(world: World) -> None:
    job = example("long_conversations")
    query = "SELECT depot, question, follow_up, message FROM night_reports"
    follow_up = world.job(
        name="follow_ups",
        source={"path": None, "query": query, "database": str(world.database.url), "key": "depot"},
        request={
            "model": "claude-sonnet-5",
            "messages": [{"role": "user", "content": "{{ question }}"}],
            "turns": "message",
            "prompt": "{{ follow_up }}",
            "betas": job.request.betas,
            "params": job.request.params,
        },
        output={"message": True},
        sink={"table": "follow_ups"},
    )

    world.run(job)
    finished = world.run(follow_up)

    assert finished.rows == {"succeeded": 4}
    for first, second in zip(answers(world, job), answers(world, follow_up), strict=True):
        before, after = orjson.loads(first["message"]), orjson.loads(second["message"])
        assert before["content"][0]["type"] == "compaction"
        assert "compaction" not in [block["type"] for block in after["content"]]
        compaction = before["usage"]["iterations"][0]["input_tokens"]
        assert compaction > 50_000
        assert first["input_tokens"] == before["usage"]["input_tokens"] + compaction
        assert second["input_tokens"] < 500
        assert first["cost_usd"] > 20 * second["cost_usd"]


def test_night_logs_can_be_made_again(tmp_path: Path) -> None:
    subprocess.run([sys.executable, SAMPLES / "make_night_logs.py", tmp_path / "again.parquet"], check=True)

    assert_frame_equal(pl.read_parquet(tmp_path / "again.parquet"), pl.read_parquet(SAMPLES / "night_logs.parquet"))


@ON_SQLITE
def test_documents_are_cited_put_up_once_and_removed(world: World) -> None:
    job = example("contracts")

    world.run(job)

    found = {answer["contract_id"]: orjson.loads(answer["citations"]) for answer in answers(world, job)}
    assert {place["type"] for places in found.values() for place in places} == {"page_location"}
    assert len(world.told("uploaded")) == len(world.told("file_removed")) == 4  # of the eight that the rows name
    assert list(world.client().files.list()) == []
    assert list(world.client().messages.batches.list()) == []


@ON_SQLITE
def test_photos_are_attached_by_what_they_are(world: World) -> None:
    job = example("photos")
    row = {"parcel_id": "FP-20421", "photo": "photos/fp-20421.jpg", "note": "n"}
    built = orjson.loads(RequestBuilder(job).params(row, LocalFolder(SAMPLES / "attachments")).params)

    world.run(job)

    assert built["messages"][0]["content"][0]["source"]["media_type"] == "image/png"  # its name says otherwise
    for answer in answers(world, job):
        assert "recipient" not in answer  # all of it has columns
        assert answer["town"] is not None
        assert isinstance(orjson.loads(answer["marks"]), list)


@ON_SQLITE
def test_a_nested_property_has_a_column_beside_its_object(world: World) -> None:
    job = example("invoices")

    world.run(job)

    for answer in answers(world, job):
        assert answer["town"] is not None
        assert "town" not in orjson.loads(answer["address"] or "{}")
        assert set(orjson.loads(answer["lines"])[0]) == {"what", "amount"}
        assert (answer["paid"] is None, answer["text"]) == (False, None)


@ON_SQLITE
@pytest.mark.parametrize("name", ["thinking", "thinking_budget"])
def test_thinking_stands_in_its_own_column_alone(world: World, name: str) -> None:
    job = example(name)

    world.run(job)

    for answer in answers(world, job):
        assert answer["thinking"].startswith("[emulated]")
        assert answer["thinking"] not in (answer["text"] or "")


@ON_SQLITE
@pytest.mark.parametrize(
    ("name", "used"),
    [
        ("web_search", {"web_search": 1, "web_search_requests": 1}),
        ("context_management", {"web_fetch": 1, "web_fetch_requests": 1}),
    ],
)
def test_tools_that_the_api_runs_are_counted(world: World, name: str, used: dict[str, int]) -> None:
    job = example(name)

    world.run(job)

    assert of_tools(world, job) == [used] * len(answers(world, job))


@ON_SQLITE
def test_what_did_not_succeed_goes_again_changed(world: World) -> None:
    job = example("retry_changes")
    world.emulator.add_fault(on="item", do="max_tokens", match="csv.writer", times=2)
    world.emulator.add_fault(on="item", do="refuse", match="statistics.mean", times=1)
    world.emulator.add_fault(on="item", do="not_json", match="json.tool", times=1)
    world.emulator.add_fault(on="item", do="wrong_label", match="json.dumps", times=1)

    finished = world.run(job)

    assert set(finished.rows) == {"succeeded"}
    assert "claude-opus-4-8" in {answer["model"] for answer in answers(world, job)}
    assert max(answer["attempts"] for answer in answers(world, job)) > 1


@ON_SQLITE
def test_a_canary_a_budget_and_own_prices_hold_for_a_run(world: World) -> None:
    job = example("budget")
    at_list_price = job.model_copy(update={"prices": {}, "name": "listed", "sink": example("contracts").sink})

    discounted = world.run(job)
    listed = world.run(at_list_price)

    assert [told["rows"] for told in world.told("gate_opened")] == [25, 25]
    assert 0 < discounted.cost_usd < 2.5
    assert discounted.cost_usd == pytest.approx(0.9 * listed.cost_usd)


@ON_SQLITE
def test_a_stop_sequence_ends_an_answer_that_succeeded(world: World) -> None:
    params = example("stop_sequences").request.params
    job = world.job(request={"model": "claude-sonnet-5", "params": {**params, "stop_sequences": ["number"]}})

    world.run(job)

    assert {answer["stop_reason"] for answer in answers(world, job)} == {"stop_sequence"}
    assert {answer["status"] for answer in answers(world, job)} == {"succeeded"}


# -- fields that go by request.params --------------------------------------------------------------------------------

TOOL = {"name": "note", "input_schema": {"type": "object", "properties": {"q": {"type": "string"}}}}
#: Each field of the API that has none in the job file, with a value; and the beta that some need.
BY_PARAMS: dict[str, Any] = {
    "tools": [TOOL],
    "tool_choice": {"type": "auto"},
    "thinking": {"type": "adaptive"},
    "output_config.effort": "low",
    "output_config.task_budget": {"type": "tokens", "total": 20_000},
    "stop_sequences": ["</answer>"],
    "metadata": {"user_id": "u-1"},
    "service_tier": "standard_only",
    "container": "container_01",
    "inference_geo": "us",
    "cache_control": {"type": "ephemeral"},
    "diagnostics": {"previous_message_id": None},
    "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    "mcp_servers": [{"type": "url", "name": "catalogue", "url": "https://mcp.example.com"}],
}
BETAS = {
    "output_config.task_budget": "task-budgets-2026-03-13",
    "context_management": "context-management-2025-06-27",
    "mcp_servers": "mcp-client-2025-11-20",
}


def params_of(field: str, value: Any) -> dict[str, Any]:
    whole, _, part = field.partition(".")
    params = {whole: {part: value} if part else value}
    return {"tools": [TOOL], **params} if field == "tool_choice" else params


def with_params(world: World, field: str, value: Any) -> Job:
    betas = [BETAS[field]] if field in BETAS else []
    return world.job(request={"model": "claude-sonnet-5", "params": params_of(field, value), "betas": betas})


@ON_SQLITE
@pytest.mark.parametrize("field", BY_PARAMS)
def test_a_field_that_goes_by_params_is_checked_and_sent_as_it_is(world: World, field: str) -> None:
    job = with_params(world, field, BY_PARAMS[field])

    check_params(job)
    finished = world.run(job)

    sent = orjson.loads(RequestBuilder(job).params({"id": "r0", "text": "t"}).params)
    assert {name: sent[name] for name in job.request.params} == job.request.params
    assert finished.rows == {"succeeded": 5}


@ON_SQLITE
@pytest.mark.parametrize("field", sorted(BETAS))
def test_a_field_of_a_beta_needs_the_beta(world: World, field: str) -> None:
    job = world.job(request={"params": params_of(field, BY_PARAMS[field])})

    with pytest.raises(JobError, match=f"request.params.{field}: the Messages API has no such field"):
        check_params(job)


# -- content ---------------------------------------------------------------------------------------------------------

TEXT = {"type": "text", "text": "What does this say?"}
PLAIN = {"type": "text", "media_type": "text/plain", "data": "The shop opens at nine."}
USE = {"type": "tool_use", "id": "toolu_01", "name": "look_up", "input": {"parcel": 7}}
SEARCH = {"type": "server_tool_use", "id": "srvtoolu_01", "name": "web_search", "input": {"query": "opening hours"}}
FOUND = {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_01", "content": []}
#: Turns with blocks that no attachment makes, by what they show.
TURNS: dict[str, list[dict[str, Any]]] = {
    "text": [{"role": "user", "content": [TEXT]}],
    "document_text": [{"role": "user", "content": [{"type": "document", "source": PLAIN, "title": "Hours"}, TEXT]}],
    "document_content": [
        {"role": "user", "content": [{"type": "document", "source": {"type": "content", "content": [TEXT]}}, TEXT]}
    ],
    "search_result": [
        {
            "role": "user",
            "content": [
                {
                    "type": "search_result",
                    "source": "https://shop.example.com/hours",
                    "title": "Hours",
                    "content": [{"type": "text", "text": "Open from nine."}],
                    "citations": {"enabled": True},
                }
            ],
        }
    ],
    "tool_result": [
        {"role": "user", "content": "Where is parcel 7?"},
        {"role": "assistant", "content": [USE]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_01", "content": "in Alder"}]},
    ],
    "server_tool_use": [
        {"role": "user", "content": "When does the shop open?"},
        {"role": "assistant", "content": [SEARCH, FOUND, {"type": "text", "text": "At nine."}]},
    ],
    "thinking": [
        {"role": "user", "content": "Nine or ten?"},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "It says nine.", "signature": "ZW11bGF0ZWQ="},
                {"type": "redacted_thinking", "data": "ZW11bGF0ZWQ="},
                {"type": "text", "text": "Nine."},
            ],
        },
    ],
    "container_upload": [{"role": "user", "content": [{"type": "container_upload", "file_id": "file_01"}, TEXT]}],
}


@ON_SQLITE
def test_blocks_of_earlier_turns_arrive_as_they_are(world: World) -> None:
    source = world.folder / "chats.ndjson"
    source.write_bytes(b"".join(orjson.dumps({"id": name, "turns": turns}) + b"\n" for name, turns in TURNS.items()))
    job = world.job(
        source={"path": str(source)}, request={"turns": "turns", "prompt": "Go on.", "params": {"tools": [TOOL]}}
    )

    world.run(job)

    assert world.statuses() == dict.fromkeys(TURNS, "succeeded")
    builder = RequestBuilder(job)
    for turns in TURNS.values():
        assert orjson.loads(builder.params({"turns": turns}).params)["messages"][:-1] == turns


@ON_SQLITE
@pytest.mark.parametrize("name", TURNS)
def test_blocks_of_shared_turns_are_checked(world: World, name: str) -> None:
    check_params(world.job(request={"messages": TURNS[name]}))
    wrong = [{**TURNS[name][0], "content": [{"type": "no_such_block"}]}, *TURNS[name][1:]]

    with pytest.raises(JobError, match=r"messages\.0\.content\.0"):
        check_params(world.job(request={"messages": wrong}))


# -- clients ---------------------------------------------------------------------------------------------------------


@ON_SQLITE
@pytest.mark.parametrize(
    ("client", "said"),
    [
        ("bedrock", "Bedrock has batch inference jobs of its own"),
        ("vertex", "Vertex has batch prediction jobs of its own"),
        ("foundry", "Microsoft Foundry has no batches of Claude requests"),
    ],
)
def test_a_client_without_batches_is_refused_with_what_there_is_instead(world: World, client: str, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        world.job(api={"client": client})


# -- docs/messages-api.md --------------------------------------------------------------------------------------------


def table(heading: str) -> Iterator[tuple[set[str], str]]:
    """Each row of the table under this heading: the names in its first cell, and the second cell."""
    section = DOC.split(f"## {heading}\n")[1].split("\n## ")[0]
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("| `") else []
        if cells:
            yield set(re.findall(r"`([^`]+)`", cells[0])), cells[1]


def fields(hint: type) -> set[str]:
    return set(get_type_hints(hint))


def documented(start: str) -> set[str]:
    return {name for names, how in table("Parameters") if how.startswith(start) for name in names}


def test_the_table_names_every_parameter_of_the_sdk() -> None:
    named = {name for names, _ in table("Parameters") for name in names}

    assert fields(Params) | fields(BetaParams) <= named | {"output_config"}  # of which each part has a row
    assert {f"output_config.{field}" for field in fields(BetaOutputConfigParam)} <= named


def test_the_table_names_every_content_block_of_the_sdk() -> None:
    blocks = {get_args(get_type_hints(block)["type"])[0] for block in get_args(ContentBlockParam)}

    assert blocks <= {name for names, _ in table("Content") for name in names}


def test_what_it_says_goes_by_params_does() -> None:
    assert documented("by `params`") == set(BY_PARAMS)


@ON_SQLITE
def test_what_it_says_is_refused_is_refused(world: World) -> None:
    refused = documented("refused")

    assert {"stream", "speed", "temperature"} <= refused
    for field in refused:
        with pytest.raises(JobError, match=f"request.params.{field}:"):
            check_params(world.job(request={"params": {field: 1}}))


def test_every_test_and_every_example_that_it_names_exists() -> None:
    code = "".join(path.read_text(encoding="utf-8") for path in TESTS.rglob("test_*.py"))

    tests, examples = set(re.findall(r"`(test_\w+)`", DOC)), set(re.findall(r"`(\w+)\.yaml`", DOC))

    assert {name for name in tests if f"def {name}(" not in code} == set()
    assert len(tests) > 20
    assert examples == set(EXAMPLES)
