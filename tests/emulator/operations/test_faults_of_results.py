"""Faults of results: damaged lines, extra first lines, and slow downloads."""

import contextlib
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import httpx2
import orjson
import pytest

from pipeline.emulator import Emulator, EmulatorError, RunningEmulator, start
from tests.emulator.builders import BATCHES, HEADERS, Served, client_of, http_of, params

SUCCEEDED_ONLY = ("surrogate", "huge_number", "usage_text", "null_message")


def lines(served: Served, batch_id: str) -> list[bytes]:
    return served.http.get(f"{BATCHES}/{batch_id}/results").content.split(b"\n")


def damaged(served: Served, damage: str) -> tuple[bytes, bytes]:
    """Return the damaged line before and after the damage; assert that all other lines are unchanged."""
    batch_id = served.ended()
    before = lines(served, batch_id)
    served.emulator.add_fault(on="results", do="damaged_lines", damage=damage, match='"row-3"')
    after = lines(served, batch_id)

    assert len(after) == len(before)
    touched = [pair for pair in zip(before, after, strict=True) if pair[0] != pair[1]]
    assert len(touched) == 1
    assert b'"row-3"' in touched[0][0]
    return touched[0]


def test_a_result_line_can_lack_its_second_half(served: Served) -> None:
    before, after = damaged(served, "cut")

    assert after == before[: len(before) // 2]


def test_a_result_line_can_hold_bytes_that_are_not_text(served: Served) -> None:
    before, after = damaged(served, "binary")

    with pytest.raises(UnicodeDecodeError):
        after.decode()
    with pytest.raises(orjson.JSONDecodeError):
        orjson.loads(after)
    assert after.replace(b"\x00\xff\xfe\x80", b"") == before


def test_the_text_of_an_answer_can_hold_a_lone_surrogate(served: Served) -> None:
    before, after = damaged(served, "surrogate")

    with pytest.raises(orjson.JSONDecodeError):
        orjson.loads(after)
    told = json.loads(after)
    text = told["result"]["message"]["content"][0].pop("text")
    whole = json.loads(before)
    assert text.replace("\ud800", "") == whole["result"]["message"]["content"][0].pop("text")
    assert "\ud800" in text
    assert told == whole


def test_structured_output_with_a_lone_surrogate_is_still_json(served: Served) -> None:
    fields = {"type": "object", "properties": {"note": {"type": "string"}}, "required": ["note"]}
    schema = {"type": "json_schema", "schema": {**fields, "additionalProperties": False}}
    body = {"requests": [{"custom_id": "a", "params": params("The ship.", output_config={"format": schema})}]}
    batch_id = served.http.post(BATCHES, content=orjson.dumps(body)).raise_for_status().json()["id"]
    served.emulator.wait_idle()
    served.emulator.add_fault(on="results", do="damaged_lines", damage="surrogate")

    text = json.loads(lines(served, batch_id)[0])["result"]["message"]["content"][0]["text"]

    assert "\ud800" in json.loads(text)["note"]


def test_a_token_count_can_be_too_large_for_a_number(served: Served) -> None:
    _, after = damaged(served, "huge_number")

    with pytest.raises(orjson.JSONDecodeError):
        orjson.loads(after)
    assert json.loads(after)["result"]["message"]["usage"]["output_tokens"] == math.inf


@pytest.mark.parametrize("damage", ["usage_text", "no_type", "null_message"])
def test_a_result_line_can_be_json_of_a_wrong_form(served: Served, damage: str) -> None:
    before, after = (orjson.loads(line) for line in damaged(served, damage))

    match damage:
        case "usage_text":
            before["result"]["message"]["usage"]["output_tokens"] = "12"
        case "no_type":
            del before["result"]["type"]
        case _:
            before["result"]["message"] = None
    assert after == before


@pytest.mark.parametrize("damage", SUCCEEDED_ONLY)
def test_damage_to_a_message_leaves_lines_without_a_message_unchanged(served: Served, damage: str) -> None:
    served.emulator.add_fault(on="item", do="expire", match="Ship 1 ")
    served.emulator.add_fault(on="item", do="error", error_type="api_error", match="Ship 2 ")
    batch_id = served.ended(4)
    before = lines(served, batch_id)
    served.emulator.add_fault(on="results", do="damaged_lines", damage=damage, every=1)

    after = lines(served, batch_id)

    untouched = [old for old, new in zip(before, after, strict=True) if old == new]
    assert sorted(orjson.loads(line)["custom_id"] for line in untouched) == ["row-1", "row-2"]


def test_a_message_without_text_gets_no_surrogate(served: Served) -> None:
    served.emulator.add_fault(on="item", do="empty")
    batch_id = served.ended(2)
    before = lines(served, batch_id)
    served.emulator.add_fault(on="results", do="damaged_lines", damage="surrogate", every=1)

    assert lines(served, batch_id) == before


def test_each_damage_selects_its_own_share_of_lines_and_combines_with_other_faults(served: Served) -> None:
    batch_id = served.ended(200)
    whole = lines(served, batch_id)
    served.emulator.add_fault(on="results", do="damaged_lines", damage="cut", share=0.1)
    served.emulator.add_fault(on="results", do="damaged_lines", damage="null_message", share=0.1)
    served.emulator.add_fault(on="results", do="duplicate_lines", match='"row-7"')

    first, second = lines(served, batch_id), lines(served, batch_id)

    assert first == second
    assert len(first) == 201
    changed = [line for line in first if line not in whole]
    assert 5 < sum(b'"message":null' in line for line in changed) < 40
    assert 5 < sum(b'"message":null' not in line for line in changed) < 40


# first lines


@pytest.mark.parametrize("fields", [{}, {"text": "# résultats"}], ids=["blank", "text"])
def test_an_extra_line_can_come_before_the_first_result(served: Served, fields: dict[str, str]) -> None:
    batch_id = served.ended()
    whole = lines(served, batch_id)
    served.emulator.add_fault({"on": "results", "do": "first_line", "times": 1, **fields})

    assert lines(served, batch_id) == [fields.get("text", "").encode(), *whole]
    assert lines(served, batch_id) == whole


def test_an_extra_first_line_is_not_counted_as_a_result(served: Served) -> None:
    batch_id = served.ended()
    whole = lines(served, batch_id)
    served.emulator.add_fault(on="results", do="first_line")
    served.emulator.add_fault(on="results", do="truncate", keep=0.5)
    served.emulator.add_fault(on="results", do="missing_lines")

    assert lines(served, batch_id) == [b"", *whole[1:6]]


# downloads that are not read


@pytest.mark.parametrize(
    "rule",
    [
        {"do": "drop_after"},
        {"do": "status", "status": 500, "accept": True},
        {"do": "foreign_page", "kind": "json", "accept": True},
        {"do": "foreign_page", "kind": "cut"},
        {"do": "delay", "seconds": 60},
    ],
    ids=str,
)
def test_the_file_of_an_unread_download_is_closed(
    emulator: Emulator, rule: dict[str, Any], recwarn: pytest.WarningsRecorder
) -> None:
    batch = client_of(emulator).messages.batches.create(requests=[{"custom_id": "a", "params": params()}])  # type: ignore[typeddict-item]
    emulator.wait_idle()
    emulator.add_fault({"on": "results", **rule})

    with contextlib.suppress(httpx2.TransportError):
        http_of(emulator).get(f"{BATCHES}/{batch.id}/results", timeout=1)

    assert [warning for warning in recwarn if warning.category is ResourceWarning] == []


# slow downloads


def test_in_process_a_slow_download_comes_in_small_pieces_without_pauses(emulator: Emulator) -> None:
    batch = client_of(emulator).messages.batches.create(requests=[{"custom_id": "a", "params": params()}])  # type: ignore[typeddict-item]
    emulator.wait_idle()
    path = f"{BATCHES}/{batch.id}/results"
    whole = http_of(emulator).get(path).content
    emulator.add_fault(on="results", do="drip", seconds=3600)
    emulator.add_fault(on="results", do="first_line")

    with http_of(emulator).stream("GET", path) as response:
        pieces = list(response.iter_raw())

    assert b"".join(pieces) == b"\n" + whole
    assert {len(piece) for piece in pieces} == {1}
    assert (emulator.clock.now() - batch.created_at).total_seconds() < 3600


@pytest.fixture
def over_http(tmp_path: Path) -> Any:
    """An emulator behind an HTTP server, which the test stops."""
    with start(tmp_path) as running, httpx2.Client(base_url=running.url, headers=HEADERS) as http:
        yield running, Served(running.emulator, http)


def test_over_http_a_slow_download_pauses_before_each_piece(over_http: tuple[RunningEmulator, Served]) -> None:
    _, served = over_http
    batch_id = served.ended(1)
    whole = lines(served, batch_id)[0]
    served.emulator.add_fault(on="results", do="drip", bytes=100, seconds=0.02)
    begun = time.monotonic()

    with served.http.stream("GET", f"{BATCHES}/{batch_id}/results") as response:
        pieces = list(response.iter_raw())

    assert b"".join(pieces) == whole
    assert max(map(len, pieces)) == 100
    assert time.monotonic() - begun >= 0.02 * math.ceil(len(whole) / 100)


def test_a_client_with_a_short_timeout_gives_up_a_slow_download(over_http: tuple[RunningEmulator, Served]) -> None:
    _, served = over_http
    batch_id = served.ended(1)
    served.emulator.add_fault(on="results", do="drip", seconds=60)

    with pytest.raises(httpx2.ReadTimeout):
        served.http.get(f"{BATCHES}/{batch_id}/results", timeout=0.1)

    assert _closed_within_seconds(served.emulator.data / "batches" / batch_id / "results", 5)
    assert served.batch(batch_id)["id"] == batch_id


def _closed_within_seconds(path: Path, seconds: float) -> bool:
    """Return whether the server closes the file of a download."""
    deadline = time.monotonic() + seconds
    while path in _open_files():
        if time.monotonic() > deadline:
            return False
        os.sched_yield()
    return True


def _open_files() -> set[Path]:
    """Return the files that this process has open; the server is a thread of it."""
    opened = set()
    for handle in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            opened.add(Path(os.readlink(f"/proc/self/fd/{handle}")))
    return opened


def test_a_stop_does_not_wait_for_a_slow_download(over_http: tuple[RunningEmulator, Served]) -> None:
    running, served = over_http
    batch_id = served.ended(1)
    served.emulator.add_fault(on="results", do="drip", seconds=60)
    with served.http.stream("GET", f"{BATCHES}/{batch_id}/results") as response:
        begun = time.monotonic()
        running.stop()
        stopped = time.monotonic() - begun
        with pytest.raises(httpx2.RemoteProtocolError):
            response.read()

    assert stopped < 1


# rules


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"on": "results", "do": "damaged_lines"}, "faults[0]: do: damaged_lines needs damage"),
        (
            {"on": "results", "do": "damaged_lines", "damage": "x"},
            "faults[0].damage: Input should be 'cut', 'binary', ",
        ),
        ({"on": "list", "do": "first_line"}, "faults[0]: do: first_line needs on: results, not list"),
        ({"on": "any", "do": "drip", "seconds": 1}, "faults[0]: do: drip needs on: results, not any"),
        ({"on": "results", "do": "drip"}, "faults[0]: do: drip needs seconds"),
        ({"on": "results", "do": "drip", "seconds": 0}, "faults[0]: seconds must be more than 0 for do: drip"),
        ({"on": "results", "do": "drip", "seconds": 1, "bytes": 0}, "faults[0].bytes: Input should be greater than or"),
        ({"on": "results", "do": "truncate", "text": ""}, "faults[0]: text cannot be used with do: truncate"),
    ],
    ids=str,
)
def test_a_wrong_rule_is_refused(emulator: Emulator, rule: dict[str, Any], message: str) -> None:
    with pytest.raises(EmulatorError) as refused:
        emulator.add_fault(rule)

    assert str(refused.value).startswith(message)
