"""What a client sees of each fault rule."""

from collections import Counter
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import orjson
import pytest

from pipeline.emulator import Emulator, EmulatorError
from pipeline.emulator.faults import read_faults
from pipeline.emulator.operations.processing import WRONG_LABEL
from tests.emulator.builders import client_of, http_of, params, request, requests, result_lines, result_of

BATCHES = "/v1/messages/batches"
LABELS = {
    "type": "object",
    "properties": {"label": {"enum": ["billing", "outage"]}, "note": {"type": "string"}},
    "required": ["label", "note"],
    "additionalProperties": False,
}
STRUCTURED = {"output_config": {"format": {"type": "json_schema", "schema": LABELS}}}


def accepted(emulator: Emulator) -> int:
    return len(list(emulator.accepted()))


def ended(emulator: Emulator, number: int = 10) -> str:
    """Create a batch, wait until it has ended, and return its id."""
    batch_id = client_of(emulator).messages.batches.create(requests=requests(number)).id
    emulator.wait_idle()
    return batch_id


# calls


def test_a_create_can_be_accepted_and_its_answer_lost(emulator: Emulator, client: anthropic.Anthropic) -> None:
    emulator.add_fault(on="create", do="drop_after", times=1)

    with pytest.raises(anthropic.APIConnectionError):
        client.messages.batches.create(requests=requests(2))

    assert accepted(emulator) == 2
    assert [entry["status"] for entry in emulator.log()] == [None]
    assert [entry["fault"] for entry in emulator.log()] == ["drop_after"]


def test_the_sdks_own_retry_then_sends_a_second_batch(emulator: Emulator) -> None:
    emulator.add_fault(on="create", do="drop_after", times=1)

    client_of(emulator, max_retries=1).messages.batches.create(requests=requests(2))

    assert emulator.audit()["accepted_twice_count"] == 2


def test_a_connection_can_be_lost_before_anything_is_accepted(emulator: Emulator, client: anthropic.Anthropic) -> None:
    emulator.add_fault(on="create", do="drop_before", times=1)

    with pytest.raises(anthropic.APIConnectionError):
        client.messages.batches.create(requests=requests(2))

    assert accepted(emulator) == 0
    assert client.messages.batches.create(requests=requests(2)).request_counts.processing == 2


@pytest.mark.parametrize(
    ("status", "error_type"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (402, "billing_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (408, "timeout_error"),
        (409, "conflict_error"),
        (413, "request_too_large"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (502, "api_error"),
        (504, "timeout_error"),
        (529, "overloaded_error"),
    ],
)
@pytest.mark.parametrize("accept", [True, False], ids=["accepted", "refused"])
def test_any_status_can_be_answered_with_or_without_accepting(
    emulator: Emulator, status: int, error_type: str, accept: bool
) -> None:
    emulator.add_fault(on="create", do="status", status=status, accept=accept)

    answer = http_of(emulator).post(BATCHES, content=orjson.dumps({"requests": requests(2)}))

    assert answer.status_code == status
    assert answer.json()["error"]["type"] == error_type
    assert answer.json()["request_id"] == answer.headers["request-id"]
    assert accepted(emulator) == (2 if accept else 0)


def test_a_proxys_page_can_replace_an_error_of_the_api(emulator: Emulator, client: anthropic.Anthropic) -> None:
    emulator.add_fault(on="create", do="status", status=502, accept=True, page="html")

    with pytest.raises(anthropic.InternalServerError) as error:
        client.messages.batches.create(requests=requests(1))

    assert error.value.type is None
    assert error.value.response.text.startswith("<html>")
    assert accepted(emulator) == 1


@pytest.mark.parametrize(
    ("fields", "headers", "details"),
    [
        ({"retry_after": 7}, {"retry-after": "7"}, None),
        ({}, {}, None),
        ({"error_code": "enforced_spend_limit_reached"}, {}, {"error_code": "enforced_spend_limit_reached"}),
        ({"status": 529, "should_retry": True}, {"x-should-retry": "true"}, None),
        ({"headers": {"x-own": "1"}}, {"x-own": "1"}, None),
    ],
    ids=["retry-after", "bare", "spend limit", "should retry", "own header"],
)
def test_an_error_has_the_headers_and_the_code_of_its_rule(
    emulator: Emulator, fields: dict[str, Any], headers: dict[str, str], details: dict[str, str] | None
) -> None:
    emulator.add_fault({"on": "list", "do": "status", "status": 429, **fields})

    answer = http_of(emulator).get(BATCHES)

    assert {name: answer.headers.get(name) for name in headers} == headers
    assert ("retry-after" in answer.headers) == ("retry_after" in fields)
    assert answer.json()["error"].get("details") == details


def test_an_error_of_a_spend_limit_has_the_message_of_the_api(emulator: Emulator) -> None:
    emulator.add_fault(on="list", do="status", status=429, error_code="enforced_spend_limit_reached")
    emulator.add_fault(
        on="create", do="status", status=400, message="You have reached your specified API usage limits."
    )

    monthly = http_of(emulator).get(BATCHES).json()["error"]["message"]
    own = http_of(emulator).post(BATCHES, content=b"{}").json()["error"]["message"]

    assert monthly.startswith("You have reached your API usage limits: your organization has crossed its monthly")
    assert own == "You have reached your specified API usage limits."


def test_an_answer_can_be_delayed(emulator: Emulator) -> None:
    emulator.add_fault(on="create", do="delay", seconds=30)
    before = emulator.clock.now()

    with pytest.raises(anthropic.APITimeoutError):
        client_of(emulator, timeout=20).messages.batches.create(requests=requests(1))
    client_of(emulator, timeout=60).messages.batches.create(requests=requests(1))

    assert accepted(emulator) == 2
    assert (emulator.clock.now() - before).total_seconds() >= 50


def test_the_first_retrieve_of_each_batch_can_fail(emulator: Emulator, client: anthropic.Anthropic) -> None:
    emulator.add_fault(on="retrieve", do="status", status=404, times=2, per="batch")
    ids = [client.messages.batches.create(requests=[request(n)]).id for n in range(2)]

    statuses = [http_of(emulator).get(f"{BATCHES}/{batch_id}").status_code for batch_id in ids for _ in range(3)]

    assert statuses == [404, 404, 200, 404, 404, 200]


def test_one_page_of_a_listing_can_fail(emulator: Emulator, client: anthropic.Anthropic) -> None:
    for n in range(5):
        client.messages.batches.create(requests=[request(n)])
    emulator.add_fault(on="list", do="status", status=500, list_page=3, times=1)

    pages = client.messages.batches.list(limit=2).iter_pages()
    seen = [batch for _ in range(2) for batch in next(pages).data]
    with pytest.raises(anthropic.InternalServerError):
        next(pages)

    assert len(seen) == 4
    assert len(list(client.messages.batches.list(limit=2))) == 5


def test_a_new_batch_can_be_listed_late(emulator: Emulator, client: anthropic.Anthropic) -> None:
    emulator.add_fault(on="list", do="lag", seconds=60)
    batch = client.messages.batches.create(requests=requests(1))

    at_once = client.messages.batches.list().data
    emulator.clock.advance(61)
    later = client.messages.batches.list().data

    assert at_once == []
    assert [listed.id for listed in later] == [batch.id]
    assert client.messages.batches.retrieve(batch.id).id == batch.id


def test_results_url_can_name_another_host(emulator: Emulator, client: anthropic.Anthropic) -> None:
    batch_id = ended(emulator)
    emulator.add_fault(on="retrieve", do="results_url", host="https://results.example")

    assert client.messages.batches.retrieve(batch_id).results_url == (
        f"https://results.example{BATCHES}/{batch_id}/results"
    )


@pytest.mark.parametrize(
    ("rule", "statuses"),
    [
        ({"times": 2}, [500, 500, 200, 200, 200, 200]),
        ({"after": 2, "times": 1}, [200, 200, 500, 200, 200, 200]),
        ({"after": 4}, [200, 200, 200, 200, 500, 500]),
        ({"every": 3}, [200, 200, 500, 200, 200, 500]),
        ({"match": "no such text"}, [200] * 6),
        ({"match": "batches"}, [500] * 6),
    ],
    ids=["times", "after and times", "after", "every", "no match", "match"],
)
def test_a_rule_applies_to_the_calls_that_it_names(
    emulator: Emulator, rule: dict[str, Any], statuses: list[int]
) -> None:
    emulator.add_fault({"on": "list", "do": "status", "status": 500, **rule})

    assert [http_of(emulator).get(BATCHES).status_code for _ in statuses] == statuses


def test_match_searches_the_body_of_a_create(emulator: Emulator) -> None:
    emulator.add_fault(on="create", do="status", status=500, match="Ship 7 ")

    with_7 = http_of(emulator).post(BATCHES, content=orjson.dumps({"requests": requests(8)}))
    without = http_of(emulator).post(BATCHES, content=orjson.dumps({"requests": requests(7)}))

    assert (with_7.status_code, without.status_code) == (500, 200)


def test_on_any_applies_to_every_operation_until_the_faults_are_cleared(
    emulator: Emulator, client: anthropic.Anthropic
) -> None:
    emulator.add_fault(on="any", do="status", status=403)

    with pytest.raises(anthropic.PermissionDeniedError):
        client.models.list()
    with pytest.raises(anthropic.PermissionDeniedError):
        client.messages.count_tokens(model="claude-haiku-4-5", messages=[{"role": "user", "content": "a"}])
    emulator.clear_faults()

    assert client.models.list().data


# results


@pytest.mark.parametrize(
    ("rule", "lines", "error"),
    [
        ({"cut_at": "line", "end": "clean"}, 5, None),
        ({"cut_at": "mid_line", "end": "clean"}, 6, None),
        ({"cut_at": "line", "end": "cut"}, 5, httpx2.RemoteProtocolError),
        ({"cut_at": "mid_line", "end": "reset"}, 6, httpx2.ReadError),
        ({"keep": 0.9, "end": "clean"}, 9, None),
    ],
    ids=["clean on a boundary", "clean within a line", "cut on a boundary", "reset within a line", "nearly whole"],
)
def test_a_download_can_end_early(
    emulator: Emulator, rule: dict[str, Any], lines: int, error: type[Exception] | None
) -> None:
    batch_id = ended(emulator)
    emulator.add_fault({"on": "results", "do": "truncate", "times": 1, **rule})

    received, raised = _download(emulator, batch_id)
    again, _ = _download(emulator, batch_id)

    assert len(received.split(b"\n")) == lines
    assert raised is error
    assert again.startswith(received)
    assert len(again.split(b"\n")) == 10


def _download(emulator: Emulator, batch_id: str) -> tuple[bytes, type[Exception] | None]:
    received = b""
    with http_of(emulator).stream("GET", f"{BATCHES}/{batch_id}/results") as response:
        try:
            for chunk in response.iter_bytes():
                received += chunk
        except httpx2.TransportError as exc:
            return received, type(exc)
    return received, None


def test_result_lines_can_be_missing_duplicated_unknown_or_conflicting(emulator: Emulator) -> None:
    batch_id = ended(emulator)
    emulator.add_fault(on="results", do="missing_lines", match='"row-1"')
    emulator.add_fault(on="results", do="duplicate_lines", match='"row-2"')
    emulator.add_fault(on="results", do="conflicting_lines", match='"row-3"')
    emulator.add_fault(on="results", do="unknown_lines", count=2)

    lines = result_lines(client_of(emulator), batch_id)
    counted = Counter(line["custom_id"] for line in lines)

    assert counted == Counter({f"row-{n}": 1 for n in (0, *range(4, 10))}) + Counter(
        {"row-2": 2, "row-3": 2, "unknown-0": 1, "unknown-1": 1}
    )
    assert [line["result"]["type"] for line in lines if line["custom_id"] == "row-3"] == ["succeeded", "expired"]


def test_a_share_of_lines_selects_the_same_lines_each_time(emulator: Emulator) -> None:
    batch_id = ended(emulator, 200)
    emulator.add_fault(on="results", do="missing_lines", share=0.1)

    first, second = (result_lines(client_of(emulator), batch_id) for _ in range(2))

    assert first == second
    assert 160 < len(first) < 200


def test_a_line_fault_without_a_selection_applies_to_one_line(emulator: Emulator) -> None:
    batch_id = ended(emulator)
    emulator.add_fault(on="results", do="missing_lines")

    assert len(result_lines(client_of(emulator), batch_id)) == 9


# requests


@pytest.mark.parametrize(
    ("rule", "result"),
    [
        ({"do": "expire"}, {"type": "expired"}),
        ({"do": "cancel"}, {"type": "canceled"}),
        ({"do": "result_type", "result_type": "paused"}, {"type": "paused"}),
        (
            {"do": "error", "error_type": "overloaded_error"},
            {
                "type": "errored",
                "error": {
                    "type": "error",
                    "error": {
                        "details": {"error_visibility": "user_facing"},
                        "type": "overloaded_error",
                        "message": "Overloaded",
                    },
                    "request_id": None,
                },
            },
        ),
        (
            {"do": "error", "error_type": "cosmic_error", "message": "Rays", "flat": True},
            {"type": "errored", "error": {"type": "cosmic_error", "message": "Rays"}},
        ),
    ],
    ids=["expired", "canceled", "unknown result type", "error", "flat error of unknown type"],
)
def test_a_request_can_end_without_an_answer(emulator: Emulator, rule: dict[str, Any], result: dict[str, Any]) -> None:
    emulator.add_fault({"on": "item", **rule})

    assert result_of(emulator) == result


@pytest.mark.parametrize(
    ("rule", "stop_reason"),
    [
        ({"do": "max_tokens"}, "max_tokens"),
        ({"do": "context_window"}, "model_context_window_exceeded"),
        ({"do": "pause_turn"}, "pause_turn"),
        ({"do": "empty"}, "end_turn"),
        ({"do": "refuse", "category": "cyber", "explanation": "No."}, "refusal"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_answer_can_stop_for_any_reason(emulator: Emulator, rule: dict[str, Any], stop_reason: str) -> None:
    emulator.add_fault({"on": "item", **rule})

    message = result_of(emulator)["message"]

    assert message["stop_reason"] == stop_reason
    assert (message["content"] == []) == (rule["do"] in ("empty", "refuse"))
    refusal = {"type": "refusal", "category": "cyber", "explanation": "No."}
    assert message["stop_details"] == (refusal if rule["do"] == "refuse" else None)
    assert message["usage"]["output_tokens"] == (
        100 if rule["do"] == "max_tokens" else message["usage"]["output_tokens"]
    )


@pytest.mark.parametrize(
    ("do", "label"), [("wrong_label", WRONG_LABEL), ("wrong_case", "BILLING")], ids=["label", "letter case"]
)
def test_a_structured_answer_can_violate_its_enum(emulator: Emulator, do: str, label: str) -> None:
    emulator.add_fault(on="item", do=do)

    fields = params("billing, billing", **STRUCTURED)
    value = orjson.loads(result_of(emulator, **fields)["message"]["content"][0]["text"])

    assert value["label"] == label
    assert value["note"] == "[emulated] billing, billing"


def test_a_share_of_answers_can_be_other_declared_labels(emulator: Emulator) -> None:
    asked = [params(f"billing, billing {i}", **STRUCTURED) for i in range(200)]
    right = labels_of(emulator, asked)
    emulator.add_fault(on="item", do="other_label", share=0.2, seed=1)
    wrong = labels_of(emulator, asked)
    emulator.clear_faults()
    emulator.add_fault(on="item", do="other_label", share=0.2, seed=2)

    differing = [i for i in range(200) if wrong[i] != right[i]]

    assert 25 <= len(differing) <= 55
    assert set(wrong) <= {"billing", "outage"}
    assert labels_of(emulator, asked) != wrong


def labels_of(emulator: Emulator, asked: list[dict[str, Any]]) -> list[str]:
    """The label that the emulator answers to each of these params."""
    client = client_of(emulator)
    sent: Any = [{"custom_id": str(i), "params": fields} for i, fields in enumerate(asked)]
    batch = client.messages.batches.create(requests=sent)
    emulator.wait_idle()
    lines = {line["custom_id"]: line["result"]["message"]["content"] for line in result_lines(client, batch.id)}
    return [orjson.loads(lines[str(i)][0]["text"])["label"] for i in range(len(asked))]


def test_the_input_of_a_forced_tool_can_have_another_declared_label(emulator: Emulator) -> None:
    schema = {"type": "object", "properties": {"label": {"type": "string", "enum": ["billing", "outage"]}}}
    tool = {"name": "sort", "input_schema": schema}
    fields = params("billing, billing", tools=[tool], tool_choice={"type": "tool", "name": "sort"})
    emulator.add_fault(on="item", do="other_label")

    [block] = result_of(emulator, **fields)["message"]["content"]

    assert block["input"] == {"label": "outage"}


def test_labels_in_free_text_can_be_wrong(emulator: Emulator) -> None:
    emulator.add_fault(on="item", do="wrong_label", match="Ship 1")
    emulator.add_fault(on="item", do="wrong_case", match="Ship 2")

    texts = [result_of(emulator, **request(n)["params"])["message"]["content"][0]["text"] for n in (1, 2)]

    assert texts == [WRONG_LABEL, "[EMULATED] sUMMARIZE."]


def test_a_structured_answer_can_be_invalid_json(emulator: Emulator) -> None:
    emulator.add_fault(on="item", do="not_json")

    text = result_of(emulator, **STRUCTURED)["message"]["content"][0]["text"]

    assert text.startswith("[emulated] Here is what I found: {")
    with pytest.raises(orjson.JSONDecodeError):
        orjson.loads(text)


def test_text_can_hold_unusual_line_separators(emulator: Emulator) -> None:
    emulator.add_fault(on="item", do="strange_text")

    text = result_of(emulator, **params("The ship sank."))["message"]["content"][0]["text"]
    structured = result_of(emulator, **params("The ship sank.", **STRUCTURED))["message"]["content"][0]["text"]

    assert text == "[emulated]\u2028The\x85ship sank."
    assert "\u2028" in orjson.loads(structured)["note"]


def kinds_of(emulator: Emulator, number: int) -> dict[str, str]:
    batch_id = ended(emulator, number)
    return {line["custom_id"]: line["result"]["type"] for line in result_lines(client_of(emulator), batch_id)}


def test_a_share_of_requests_is_selected_by_their_content(emulator: Emulator) -> None:
    emulator.add_fault(on="item", do="expire", share=0.2)

    first, second = kinds_of(emulator, 200), kinds_of(emulator, 200)

    assert first == second
    assert 20 < list(first.values()).count("expired") < 60


def test_every_kth_request_is_counted_in_the_order_of_the_create(emulator: Emulator) -> None:
    emulator.add_fault(on="item", do="expire", every=4)

    expired = {name for name, kind in kinds_of(emulator, 10).items() if kind == "expired"}

    assert expired == {"row-3", "row-7"}


def test_a_request_can_fail_once_and_succeed_when_sent_again(emulator: Emulator) -> None:
    emulator.add_fault(on="item", do="error", error_type="api_error", times=1, per="params")

    first, second = kinds_of(emulator, 5), kinds_of(emulator, 5)

    assert set(first.values()) == {"errored"}
    assert set(second.values()) == {"succeeded"}


def test_a_number_of_requests_can_fail_in_each_batch(emulator: Emulator) -> None:
    emulator.add_fault(on="item", do="expire", times=2, per="batch")

    counts = [list(kinds_of(emulator, 5).values()).count("expired") for _ in range(2)]

    assert counts == [2, 2]


def test_an_unprocessed_request_uses_up_no_fault(slow: Emulator) -> None:
    slow.settings.canceled_share = 1
    slow.add_fault(on="item", do="error", error_type="api_error", times=1, per="params")
    client = client_of(slow)
    canceled = client.messages.batches.create(requests=requests(3))
    client.messages.batches.cancel(canceled.id)
    slow.clock.advance(3600)

    again = client.messages.batches.create(requests=requests(3))
    slow.clock.advance(3600)

    assert client.messages.batches.retrieve(canceled.id).request_counts.canceled == 3
    assert client.messages.batches.retrieve(again.id).request_counts.errored == 3


def test_counts_agree_with_the_lines(emulator: Emulator) -> None:
    emulator.add_fault(on="item", do="expire", match="Ship 1 ")
    emulator.add_fault(on="item", do="cancel", match="Ship 2 ")
    emulator.add_fault(on="item", do="error", error_type="api_error", match="Ship 3 ")
    emulator.add_fault(on="item", do="result_type", result_type="paused", match="Ship 4 ")

    batch = client_of(emulator).messages.batches.retrieve(ended(emulator))

    assert batch.request_counts.to_dict() == {
        "processing": 0,
        "succeeded": 6,
        "errored": 2,
        "canceled": 1,
        "expired": 1,
    }


# rules


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"on": "create"}, "faults[0].do: Field required"),
        ({"on": "moon", "do": "delay"}, "faults[0].on: Input should be 'create', "),
        ({"on": "create", "do": "explode"}, "faults[0].do: Input should be 'drop_before', "),
        ({"on": "create", "do": "delay"}, "faults[0]: do: delay needs seconds"),
        ({"on": "create", "do": "status"}, "faults[0]: do: status needs status"),
        ({"on": "create", "do": "truncate"}, "faults[0]: do: truncate needs on: results, not create"),
        (
            {"on": "item", "do": "status", "status": 500},
            "faults[0]: do: status needs on: any or cancel or count_tokens",
        ),
        ({"on": "create", "do": "drop_after", "seconds": 3}, "faults[0]: seconds cannot be used with do: drop_after"),
        ({"on": "create", "do": "drop_after", "tiems": 3}, "faults[0].tiems: Extra inputs are not permitted"),
        (
            {"on": "create", "do": "drop_after", "times": 0},
            "faults[0].times: Input should be greater than or equal to 1",
        ),
        ({"on": "item", "do": "expire", "share": 2}, "faults[0].share: Input should be less than or equal to 1"),
        ({"on": "create", "do": "drop_after", "per": "params"}, "faults[0]: per: params needs on: item"),
        ({"on": "create", "do": "drop_after", "list_page": 2}, "faults[0]: list_page needs on: list"),
        (["x"], "faults[0]: Input should be a valid dictionary or instance of Fault"),
    ],
    ids=str,
)
def test_the_message_about_a_wrong_rule_names_its_field(emulator: Emulator, rule: Any, message: str) -> None:
    with pytest.raises(EmulatorError) as refused:
        emulator.add_fault(rule)
    over_http = http_of(emulator).post("/_emulator/faults", content=orjson.dumps([rule]))

    assert str(refused.value).startswith(message)
    assert over_http.status_code == 400
    assert over_http.json()["error"]["message"].startswith(message)
    assert emulator.faults() == []


def test_faults_can_be_read_from_yaml_and_json_with_settings(tmp_path: Path) -> None:
    yaml, json = tmp_path / "faults.yaml", tmp_path / "faults.json"
    yaml.write_text("settings: {canceled_share: 1}\nfaults:\n  - {on: create, do: drop_after, times: 1}\n")
    json.write_text('[{"on": "item", "do": "expire", "share": 0.1}]')

    rules, settings = read_faults(yaml)
    others, plain = read_faults(json)

    assert [rule.do for rule in rules + others] == ["drop_after", "expire"]
    assert (settings.canceled_share, plain.canceled_share) == (1, 0.5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[{on: create, do: x}]", "faults[0].do: Input should be"),
        ("{rules: []}", "the key rules is unknown; use faults and settings"),
        ("{settings: {x: 1}}", "settings.x: Extra inputs are not permitted"),
        ("a: [", "is neither YAML nor JSON"),
        ("text", "faults must be a list of rules"),
        (None, "cannot be read: No such file"),
    ],
    ids=["rule", "key", "setting", "syntax", "scalar", "missing"],
)
def test_the_message_about_a_wrong_file_names_the_file(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "faults.yaml"
    if text is not None:
        path.write_text(text)

    with pytest.raises(EmulatorError) as refused:
        read_faults(path)

    assert str(path) in str(refused.value)
    assert message in str(refused.value)
