"""Faults that replace an answer: pages that are not the API's, answers of another call, and wrong dates."""

from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any

import orjson
import pytest

from pipeline.emulator import EmulatorError
from pipeline.emulator.faults import parse_faults
from tests.emulator.builders import BATCHES, Served, params

KINDS = {
    "html": ("text/html", b"<!DOCTYPE html>"),
    "empty": (None, b""),
    "json": ("application/json", b'{"status":"ok"}'),
    "null": ("application/json", b"null"),
}


@pytest.mark.parametrize("accept", [True, False], ids=["accepted", "not done"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_foreign_page_can_replace_the_answer_to_a_create(served: Served, kind: str, accept: bool) -> None:
    served.emulator.add_fault(on="create", do="foreign_page", kind=kind, accept=accept, times=1)

    answer = served.create(2)

    content_type, beginning = KINDS[kind]
    assert answer.status_code == 200
    assert answer.headers.get("content-type") == content_type
    assert answer.content.startswith(beginning)
    assert (answer.content == b"") == (kind == "empty")
    assert served.accepted() == (2 if accept else 0)
    assert [entry["fault"] for entry in served.emulator.log()] == [f"foreign_page {kind}"]
    assert served.create(1).json()["type"] == "message_batch"


@pytest.mark.parametrize(
    ("operation", "method", "path"),
    [
        ("list", "GET", BATCHES),
        ("retrieve", "GET", f"{BATCHES}/ID"),
        ("results", "GET", f"{BATCHES}/ID/results"),
        ("cancel", "POST", f"{BATCHES}/ID/cancel"),
        ("delete", "DELETE", f"{BATCHES}/ID"),
        ("models", "GET", "/v1/models"),
        ("files_list", "GET", "/v1/files"),
        ("any", "GET", "/v1/models"),
    ],
)
@pytest.mark.parametrize("kind", ["html", "json"])
def test_a_foreign_page_can_replace_the_answer_of_each_operation(
    served: Served, kind: str, operation: str, method: str, path: str
) -> None:
    batch_id = served.ended()
    served.emulator.add_fault(on=operation, do="foreign_page", kind=kind)

    answer = served.http.request(method, path.replace("ID", batch_id))
    served.emulator.clear_faults()

    assert answer.status_code == 200
    assert answer.content.startswith(KINDS[kind][1])
    assert served.batch(batch_id)["id"] == batch_id  # not deleted


def test_an_answer_can_be_cut_in_half(served: Served) -> None:
    served.emulator.add_fault(on="create", do="foreign_page", kind="cut", times=1)

    answer = served.create(2)

    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["content-length"] == str(len(answer.content))
    assert answer.content.startswith(b'{"id":"msgbatch_')
    with pytest.raises(orjson.JSONDecodeError):
        orjson.loads(answer.content)
    assert served.accepted() == 2


def test_results_can_be_cut_in_the_middle_of_their_first_line(served: Served) -> None:
    batch_id = served.ended()
    whole = served.http.get(f"{BATCHES}/{batch_id}/results").content.split(b"\n")[0]
    served.emulator.add_fault(on="results", do="foreign_page", kind="cut")

    answer = served.http.get(f"{BATCHES}/{batch_id}/results")

    assert answer.content == whole[: len(whole) // 2]
    assert answer.headers["content-length"] == str(len(answer.content))


def test_events_and_errors_can_be_cut_too(served: Served) -> None:
    served.emulator.add_fault(on="any", do="foreign_page", kind="cut")

    events = served.http.post("/v1/messages", content=orjson.dumps(params(stream=True)))
    unknown = served.http.get(f"{BATCHES}/msgbatch_nobody")

    assert (events.status_code, events.content) == (200, b"event: mes")
    assert unknown.status_code == 404
    assert unknown.content.startswith(b'{"type":"error"')
    assert b'"request_id"' not in unknown.content


def test_a_foreign_page_can_replace_one_page_of_a_listing(served: Served) -> None:
    ids = [served.create(1, first=n).json()["id"] for n in range(3)][::-1]
    served.emulator.add_fault(on="list", do="foreign_page", kind="null", list_page=2)

    first = served.http.get(BATCHES, params={"limit": 1}).json()
    second, third = (served.http.get(BATCHES, params={"limit": 1, "after_id": ids[n]}).json() for n in (0, 1))

    assert [batch["id"] for batch in first["data"]] == ids[:1]
    assert second is None
    assert [batch["id"] for batch in third["data"]] == ids[2:]


def test_the_first_rule_that_fires_is_applied_and_only_that_rule_counts_the_call(served: Served) -> None:
    served.emulator.add_fault(on="list", do="foreign_page", kind="html", times=1)
    served.emulator.add_fault(on="list", do="status", status=500, times=1)
    served.emulator.add_fault(on="any", do="foreign_page", kind="empty", times=1)

    answers = [served.http.get(BATCHES) for _ in range(4)]

    assert [answer.status_code for answer in answers] == [200, 500, 200, 200]
    assert [answer.content[:8] for answer in answers] == [b"<!DOCTYP", b'{"type":', b"", b'{"data":']


def test_the_kind_null_is_read_from_yaml_as_a_name() -> None:
    assert parse_faults([{"on": "list", "do": "foreign_page", "kind": None}])[0].kind == "null"


# answers of another call


@pytest.mark.parametrize("accept", [True, False], ids=["accepted", "not done"])
def test_a_create_can_get_the_answer_of_the_previous_create(served: Served, accept: bool) -> None:
    served.emulator.add_fault(on="create", do="repeat_answer", accept=accept, after=1, times=1)
    first = served.create(2)
    served.emulator.wait_idle()
    assert served.batch(first.json()["id"])["processing_status"] == "ended"

    second, third = served.create(3, first=2), served.create(1, first=5)

    assert second.content == first.content
    assert second.headers["request-id"] != first.headers["request-id"]
    assert third.json()["id"] != first.json()["id"]
    assert served.accepted() == (6 if accept else 3)
    assert [entry["fault"] for entry in served.emulator.log() if entry["method"] == "POST"] == [
        None,
        "repeat_answer",
        None,
    ]


def test_the_first_create_of_a_workspace_gets_its_own_answer(served: Served) -> None:
    served.http.post(BATCHES, content=b'{"requests": 1}')
    served.emulator.add_fault(on="create", do="repeat_answer")

    first = served.create(2)
    served.http.headers["x-api-key"] = "emulated@others"
    theirs = served.create(1, first=2)

    assert len({first.json()["id"], theirs.json()["id"]}) == 2
    assert served.accepted() == 3


def test_a_create_can_get_the_answer_of_a_deleted_batch(served: Served) -> None:
    first = served.create(2)
    served.emulator.wait_idle()
    served.http.delete(f"{BATCHES}/{first.json()['id']}").raise_for_status()
    served.emulator.add_fault(on="create", do="repeat_answer")

    assert served.create(1, first=2).content == first.content


# dates


def shown(answer: Any) -> datetime:
    return parsedate_to_datetime(answer.headers["date"])


@pytest.mark.parametrize("seconds", [-86400, 3600, 10**10])
def test_the_date_header_can_be_wrong_by_some_seconds(served: Served, seconds: float) -> None:
    served.emulator.add_fault(on="list", do="date", seconds=seconds)

    off, right = served.http.get(BATCHES), served.http.get("/v1/models")

    assert abs((shown(off) - shown(right)).total_seconds() - seconds) < 10


def test_the_date_header_can_be_malformed_or_missing(served: Served) -> None:
    served.emulator.add_fault(on="any", do="date", text="yesterday, I think", times=1)
    served.emulator.add_fault(on="any", do="date", text="", times=1)

    answers = [served.http.get(BATCHES) for _ in range(3)]

    assert [answer.headers.get("date") for answer in answers[:2]] == ["yesterday, I think", None]
    assert shown(answers[2]).tzname() == "UTC"


def test_a_wrong_date_can_be_combined_with_another_fault(served: Served) -> None:
    served.emulator.add_fault(on="create", do="status", status=529)
    served.emulator.add_fault(on="create", do="date", text="never")

    answer = served.create(1)

    assert (answer.status_code, answer.headers["date"]) == (529, "never")


# rules


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"on": "list", "do": "foreign_page"}, "do: foreign_page needs kind"),
        ({"on": "list", "do": "status", "status": 500, "kind": "html"}, "kind cannot be used with do: status"),
        (
            {"on": "list", "do": "foreign_page", "kind": "cut", "accept": False},
            "kind: cut cuts the answer of the call, so accept cannot be false",
        ),
        ({"on": "create", "do": "foreign_page", "kind": "html", "list_page": 1}, "list_page needs on: list"),
        ({"on": "list", "do": "repeat_answer"}, "do: repeat_answer needs on: create, not list"),
        ({"on": "list", "do": "date"}, "do: date needs either seconds or text"),
        ({"on": "list", "do": "date", "seconds": 1, "text": ""}, "do: date needs either seconds or text"),
        (
            {"on": "list", "do": "date", "text": "a\r\nb: c"},
            "text must be printable ASCII without spaces at its ends for do: date",
        ),
        (
            {"on": "list", "do": "date", "text": " a"},
            "text must be printable ASCII without spaces at its ends for do: date",
        ),
        ({"on": "list", "do": "delay", "seconds": -1}, "seconds must be 0 or more for do: delay"),
    ],
    ids=str,
)
def test_a_wrong_rule_is_refused(served: Served, rule: dict[str, Any], message: str) -> None:
    with pytest.raises(EmulatorError) as refused:
        served.emulator.add_fault(rule)
    over_http = served.http.post("/_emulator/faults", content=orjson.dumps(rule))

    assert str(refused.value).startswith(f"faults[0]: {message}")
    assert over_http.status_code == 400
    assert over_http.json()["error"]["message"].startswith(f"faults[0]: {message}")
