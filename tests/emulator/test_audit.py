"""The list of accepted requests, and the audit of those that were accepted twice without need."""

from pathlib import Path
from typing import Any

import anthropic

from pipeline.emulator import Emulator
from pipeline.emulator.ids import params_sha256
from tests.emulator.builders import client_of, request, requests


def test_each_accepted_request_is_listed_with_its_result_after_the_end(slow: Emulator) -> None:
    client = client_of(slow)
    batch = client.messages.batches.create(requests=requests(2))

    (first, _) = slow.accepted()
    slow.clock.advance(3600)
    slow.wait_idle()
    results = [entry["result"] for entry in slow.accepted()]

    assert first == {
        "batch_id": batch.id,
        "custom_id": "row-0",
        "created_at": batch.created_at.isoformat(timespec="microseconds"),
        "params_sha256": params_sha256(request(0)["params"]),
        "result": None,
    }
    assert results == ["succeeded", "succeeded"]


def test_equal_params_have_equal_digests_whatever_the_order_of_their_keys() -> None:
    assert params_sha256({"a": 1, "b": {"c": 2, "d": 3}}) == params_sha256({"b": {"d": 3, "c": 2}, "a": 1})


def test_params_sent_again_while_running_count_as_accepted_twice(slow: Emulator) -> None:
    client = client_of(slow)
    ids = [client.messages.batches.create(requests=requests(2)).id for _ in range(2)]
    client.messages.batches.create(requests=[request(7)])

    audit = slow.audit()

    assert (audit["batches"], audit["requests_accepted"], audit["distinct_params"]) == (3, 5, 3)
    assert (audit["accepted_twice_count"], audit["accepted_again"]) == (2, 0)
    assert [entry["batch_ids"] for entry in audit["accepted_twice"]] == [ids, ids]


def test_params_sent_again_after_success_count_as_accepted_twice(
    emulator: Emulator, client: anthropic.Anthropic
) -> None:
    for _ in range(2):
        client.messages.batches.create(requests=requests(1))
        emulator.wait_idle()

    assert emulator.audit()["accepted_twice_count"] == 1


def test_params_sent_again_after_failure_do_not_count_as_accepted_twice(
    emulator: Emulator, client: anthropic.Anthropic
) -> None:
    emulator.add_fault(on="item", do="error", error_type="api_error", times=1, per="params")
    for _ in range(2):
        client.messages.batches.create(requests=requests(3))
        emulator.wait_idle()

    audit = emulator.audit()

    assert (audit["accepted_again"], audit["accepted_twice_count"], audit["accepted_twice"]) == (3, 0, [])
    assert [entry["result"] for entry in emulator.accepted()] == ["errored"] * 3 + ["succeeded"] * 3


def test_a_success_counts_even_if_a_later_sending_failed(emulator: Emulator, client: anthropic.Anthropic) -> None:
    emulator.add_fault(on="item", do="expire", after=1, times=1)
    for _ in range(3):
        client.messages.batches.create(requests=requests(1))
        emulator.wait_idle()

    assert emulator.audit()["accepted_twice_count"] == 2


def test_the_same_params_twice_in_a_batch_are_accepted_twice(emulator: Emulator, client: anthropic.Anthropic) -> None:
    same: Any = [{**request(0), "custom_id": name} for name in ("a", "b")]
    client.messages.batches.create(requests=same)

    assert emulator.audit()["accepted_twice_count"] == 1


def test_the_audit_gives_at_most_100_examples(slow: Emulator) -> None:
    for _ in range(2):
        client_of(slow).messages.batches.create(requests=requests(120))

    audit = slow.audit()

    assert (audit["accepted_twice_count"], len(audit["accepted_twice"])) == (120, 100)


def test_log_and_audit_survive_a_restart(tmp_path: Path) -> None:
    with Emulator(tmp_path) as before:
        batch = client_of(before).messages.batches.create(requests=requests(1))
        client_of(before).messages.batches.retrieve(batch.id)
        audit, log = before.audit(), list(before.log())

    with Emulator(tmp_path) as after:
        assert after.audit() == audit
        client_of(after).messages.batches.retrieve(batch.id)
        entries = list(after.log())

    assert entries[:2] == log
    assert [entry["n"] for entry in entries] == [1, 2, 3]
    assert entries[0].keys() == {"n", "time", "method", "path", "status", "request_id", "fault", "batch"}
    assert [entry["batch"] for entry in entries] == [batch.id] * 3


def test_an_audit_of_nothing_is_all_zero(emulator: Emulator) -> None:
    assert emulator.audit() == {
        "batches": 0,
        "requests_accepted": 0,
        "distinct_params": 0,
        "accepted_again": 0,
        "accepted_twice_count": 0,
        "accepted_twice": [],
    }
