"""A preview asks the first rows live, as the batch would, and shows the answers in the order of the rows."""

import asyncio
import csv
import http.server
import io
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anthropic
import genai_prices
import httpx2
import orjson
import pytest
from rich.console import Console

from pipeline.answer.outcome import Outcome
from pipeline.api.reach import Reach
from pipeline.api.realtime import Answered, Picked, Realtime, async_client, stream
from pipeline.cli.preview_rows import announcement, show, tell
from pipeline.cli.preview_screen import Screen, input_lines
from pipeline.emulator import RunningEmulator, start
from pipeline.errors import AccountStopped, ApiUnreachable, InputError, SourceError
from pipeline.escapes import stripped
from pipeline.job.model import Job
from pipeline.planning.plan import Plan
from pipeline.planning.preview import pick
from pipeline.storage.folders import LocalFolder
from tests.request.test_attachments import picture

SECONDS = 20  # after which a test that waits for something has failed
DIM, RESET = "\x1b[2m", "\x1b[0m"


@pytest.fixture
def running(tmp_path: Path) -> Iterator[RunningEmulator]:
    with start(tmp_path / "emulator") as emulator:
        yield emulator


def client(url: str) -> anthropic.AsyncAnthropic:
    return async_client(Reach("default", SECONDS, url, "test"))


def job(folder: Path, rows: Sequence[Mapping[str, object]] | None = None, **changes: Any) -> Job:
    """Write a source with these rows and return a job over it; `changes` replace sections or their fields."""
    with open(folder / "rows.csv", "w", newline="", encoding="utf-8") as out:
        listed = texts(3) if rows is None else rows
        writer = csv.DictWriter(out, fieldnames=list(listed[0]) if listed else ["id", "text"])
        writer.writeheader()
        writer.writerows(listed)
    sections: dict[str, Any] = {
        "name": "summaries",
        "source": {"path": str(folder / "rows.csv"), "key": "id"},
        "request": {"model": "claude-haiku-4-5", "max_tokens": 100, "prompt": "{{ text }}"},
        "sink": {"table": "answers"},
    }
    for name, change in changes.items():
        merges = isinstance(change, dict) and isinstance(sections.get(name), dict)
        sections[name] = {**sections[name], **change} if merges else change
    return Job.model_validate(sections)


def texts(n: int) -> list[dict[str, object]]:
    return [{"id": f"r{i}", "text": f"Text number {i}."} for i in range(n)]


def picked(asked: Job, n: int = 1) -> Picked:
    return pick(Plan(asked), n)


def shown(url: str, asked: Job, n: int = 1) -> str:
    """Return what a preview draws without colors."""
    console = Console(file=io.StringIO(), width=200)
    show(client(url), picked(asked, n), asked, console)
    return written(console)


def told(url: str, asked: Job, n: int = 1) -> list[dict[str, Any]]:
    """Return what --json prints for each row."""
    rows: list[dict[str, Any]] = []
    tell(client(url), picked(asked, n), asked, rows.append)
    return rows


def colored() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, color_system="standard", width=200)


def written(console: Console) -> str:
    """Return what was drawn, without the lines that show the input."""
    return re.sub(r"(?m)^(\x1b\[2m)?> .*\n", "", drawn(console))


def drawn(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@contextmanager
def answering(
    *events: Mapping[str, Any], cut: bool = False, before_the_end: Callable[[], object] = bool
) -> Iterator[str]:
    """Run a server that answers every call with these events.

    cut: it hangs up in the middle; before_the_end: what it does before it sends the last event.
    """
    sent = [b"event: %b\ndata: %b\n\n" % (e["type"].encode(), orjson.dumps(e)) for e in events]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.send_header("content-length", str(len(b"".join(sent)) + cut))
            self.end_headers()
            self.wfile.write(b"".join(sent[:-1]))
            before_the_end()
            self.wfile.write(sent[-1])

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def begun(**fields: Any) -> dict[str, Any]:
    usage = {"input_tokens": 10, "output_tokens": 1}
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-haiku-4-5", "content": []}
    return {"type": "message_start", "message": {**message, "stop_reason": None, "usage": usage, **fields}}


def block(index: int, opening: dict[str, Any], *deltas: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"type": "content_block_start", "index": index, "content_block": opening},
        *({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": index},
    ]


def said(text: str, index: int = 0) -> list[dict[str, Any]]:
    return block(index, {"type": "text", "text": ""}, {"type": "text_delta", "text": text})


def ended(**usage: int) -> list[dict[str, Any]]:
    delta = {"stop_reason": "end_turn", "stop_sequence": None}
    return [
        {"type": "message_delta", "delta": delta, "usage": {"output_tokens": 5, **usage}},
        {"type": "message_stop"},
    ]


def without_ids(message: object) -> object:
    return orjson.loads(re.sub(rb'"(msg|srvtoolu)_[^"]*"', b'""', orjson.dumps(message)))


# -- which rows ------------------------------------------------------------------------------------------------------


def test_a_preview_asks_the_first_rows_with_the_requests_of_the_batch(tmp_path: Path) -> None:
    asked = job(tmp_path)

    found = picked(asked, 2)

    plan = Plan(asked)
    expected = [plan.builder.params(row, LocalFolder(tmp_path)).params for row in texts(2)]
    assert [(row.key, row.place) for row in found.rows] == [("r0", "rows.csv row 1"), ("r1", "rows.csv row 2")]
    assert [row.built.params for row in found.rows] == expected


def test_a_key_of_several_columns_is_shown_without_json(tmp_path: Path) -> None:
    asked = job(tmp_path, [{"id": "a", "part": 7, "text": "One."}], source={"key": ["id", "part"]})

    found = picked(asked)

    assert [row.key for row in found.rows] == ["a,7"]


def test_a_row_that_cannot_be_rendered_is_reported_and_does_not_count(tmp_path: Path) -> None:
    rows = texts(4)
    rows[1]["text"] = ""

    found = picked(job(tmp_path, rows), 2)

    assert [row.key for row in found.rows] == ["r0", "r2"]
    assert [line[:40] for line in found.problem_lines()] == ["row      rows.csv row 2 cannot be sent: "]


def test_the_first_of_many_rows_that_cannot_be_rendered_are_reported_and_the_others_counted(tmp_path: Path) -> None:
    rows = [*({"id": f"e{i}", "text": ""} for i in range(13)), {"id": "r", "text": "One."}]

    lines = list(picked(job(tmp_path, rows)).problem_lines())

    assert len(lines) == 11
    assert lines[-1] == "         and 3 more"


def test_a_preview_without_a_row_that_can_be_sent_is_refused(tmp_path: Path) -> None:
    asked = job(tmp_path, [{"id": "a", "text": ""}, {"id": "b", "text": ""}])

    with pytest.raises(SourceError, match=r"no row can be sent: rows\.csv row 1 cannot be sent: .* \(and 1 more\)"):
        picked(asked)


def test_a_preview_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="there is no row to preview"):
        picked(job(tmp_path, []))


def test_a_file_that_a_run_would_upload_is_embedded_in_the_request(tmp_path: Path, running: RunningEmulator) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    asked = job(
        tmp_path,
        [{"id": "a", "text": "One.", "photo": "a.png"}],
        request={"attachments": [{"image": "photo", "upload": True}]},
    )

    rows = told(running.url, asked)

    assert b'"type":"base64"' in picked(asked).rows[0].built.params
    assert [row["status"] for row in rows] == ["succeeded"]
    assert [entry["path"] for entry in running.emulator.log()] == ["/v1/messages"]


# -- what it costs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["claude-haiku-4-5", "claude-haiku-5-5", "claude-sonnet-4-5", "claude-opus-5-5"])
@pytest.mark.parametrize("prompt", [100, 300_000], ids=["a short prompt", "a long prompt"])
def test_the_price_of_a_live_answer_is_that_of_genai_prices(model: str, prompt: int) -> None:
    used = genai_prices.Usage(
        input_tokens=prompt + 50,
        output_tokens=200,
        cache_read_tokens=20,
        cache_write_tokens=30,
        cache_write_1h_tokens=10,
    )
    expected = genai_prices.calc_price(used, model, provider_id="anthropic").total_price

    outcome = Outcome(
        "succeeded",
        model=model,
        input_tokens=prompt,
        output_tokens=200,
        cache_read_tokens=20,
        cache_write_tokens=30,
        cache_write_1h_tokens=10,
    )
    cost = Realtime().cost(outcome)

    assert cost == pytest.approx(float(expected), rel=1e-9)


def test_a_live_answer_of_an_unpriced_model_has_no_price() -> None:
    assert Realtime().of("claude-imagined-9") is None


def test_the_announcement_says_the_full_price_and_that_it_is_no_batch_price(tmp_path: Path) -> None:
    asked = job(tmp_path, request={"max_tokens": 1000})

    sentence = announcement(picked(asked, 3), asked)

    assert sentence == (
        "3 requests through the Messages API now, at its full price (not the batch price, which is half of it): "
        "under $0.0001 at least, about $0.02 at worst, if every answer takes its max_tokens"
    )


def test_the_announcement_says_that_prices_of_the_job_are_not_used(tmp_path: Path) -> None:
    asked = job(tmp_path, prices={"claude-haiku-4-5": {"discount": 0.5}})

    sentence = announcement(picked(asked), asked)

    assert sentence.endswith("; `prices` of the job file are batch prices and do not apply here")
    assert "about $0.0005 at worst, if" in sentence


def test_the_announcement_says_that_a_price_is_not_known(tmp_path: Path) -> None:
    asked = job(tmp_path, request={"model": "claude-imagined-9"})

    sentence = announcement(picked(asked), asked)

    assert sentence == (
        "1 request through the Messages API now, at its full price: no price is known for claude-imagined-9"
    )


def test_the_announcement_names_a_tool_with_fees_of_its_own(tmp_path: Path) -> None:
    asked = job(tmp_path, request={"params": {"tools": [{"type": "web_search_20250305", "name": "web_search"}]}})

    assert "plus what web_search_20250305 costs and reads at the API" in announcement(picked(asked), asked)


# -- what is drawn ---------------------------------------------------------------------------------------------------


def test_a_row_is_drawn_with_its_key_text_status_tokens_and_price(tmp_path: Path, running: RunningEmulator) -> None:
    assert shown(running.url, job(tmp_path), 2) == (
        "r0 (rows.csv row 1)\n"
        "[emulated] Text number 0.\n"
        "succeeded; 14 tokens in, 7 out; under $0.0001\n"
        "\n"
        "r1 (rows.csv row 2)\n"
        "[emulated] Text number 1.\n"
        "succeeded; 14 tokens in, 7 out; under $0.0001\n"
        "\n"
    )


def test_the_exit_code_is_0_if_all_rows_succeeded_and_1_otherwise(tmp_path: Path, running: RunningEmulator) -> None:
    good, short = job(tmp_path), job(tmp_path, request={"max_tokens": 3})

    codes = [show(client(running.url), picked(asked), asked, Console(file=io.StringIO())) for asked in (good, short)]

    assert codes == [0, 1]


def test_thinking_is_dimmed_and_the_text_is_not(tmp_path: Path, running: RunningEmulator) -> None:
    thinking = {"type": "enabled", "budget_tokens": 1024}
    asked = job(tmp_path, request={"max_tokens": 2000, "params": {"thinking": thinking}})
    console = colored()

    show(client(running.url), picked(asked), asked, console)

    lines = written(console).splitlines()
    assert lines[1].startswith(f"{DIM}[emulated] Looked at the")
    assert lines[1].endswith(RESET)
    assert lines[2] == "[emulated] Text number 0."


def test_tool_input_is_drawn_as_json_on_a_line_of_its_own(tmp_path: Path, running: RunningEmulator) -> None:
    schema = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
    tool = {"name": "record", "input_schema": schema}
    asked = job(tmp_path, request={"params": {"tools": [tool]}}, output={"tool": "record"})

    lines = shown(running.url, asked).splitlines()

    assert lines[1] == 'record {"name":"[emulated] Text number 0."}'
    assert lines[2].startswith("succeeded; ")


def test_a_tool_that_the_api_runs_is_drawn_as_one_line(tmp_path: Path, running: RunningEmulator) -> None:
    asked = job(tmp_path, request={"params": {"tools": [{"type": "web_search_20250305", "name": "web_search"}]}})

    lines = shown(running.url, asked).splitlines()

    assert lines[1] == 'web_search {"query":"Text number 0."}'
    assert lines[2] == "[emulated] Text number 0."
    assert lines[3].endswith("out; $0.01")  # the search has a fee


def test_a_tool_of_the_api_that_fails_says_why(tmp_path: Path) -> None:
    failed = {"type": "web_search_tool_result_error", "error_code": "max_uses_exceeded"}
    result = {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": failed}

    with answering(begun(), *block(0, result), *said("Nothing found.", 1), *ended()) as url:
        lines = shown(url, job(tmp_path)).splitlines()

    assert lines[1:3] == ["web_search_tool_result: max_uses_exceeded", "Nothing found."]


def test_text_blocks_of_one_answer_are_joined(tmp_path: Path) -> None:
    with answering(begun(), *said("The ship "), *said("sank.", 1), *ended()) as url:
        lines = shown(url, job(tmp_path)).splitlines()

    assert lines[1] == "The ship sank."


def test_no_escape_sequence_of_the_model_reaches_the_terminal(tmp_path: Path) -> None:
    evil = "one\x1b[2J\x1b]0;title\x07 \x9b31m\rtwo\n\tthree\x00\x7f"
    thinking = block(0, {"type": "thinking", "thinking": ""}, {"type": "thinking_delta", "thinking": evil})
    piece = {"type": "input_json_delta", "partial_json": "\x1b{}"}
    used = block(1, {"type": "tool_use", "id": "t", "name": evil, "input": {}}, piece)
    served = block(2, {"type": "server_tool_use", "id": "s", "name": evil, "input": {"query": evil}})

    with answering(begun(), *thinking, *used, *served, *said(evil, 3), *ended()) as url:
        drawn = shown(url, job(tmp_path))

    assert [c for c in drawn if c < " " and c != "\n"] == []  # rich makes blanks of a tab
    assert not any("\x7f" <= c <= "\x9f" for c in drawn)
    assert "one[2J]0;title 31mtwo\n        three\n" in drawn


def test_no_escape_sequence_of_a_source_or_an_error_reaches_the_terminal(
    tmp_path: Path, running: RunningEmulator
) -> None:
    running.emulator.add_fault(on="messages", do="status", status=400, message="no\x1b[31m")

    drawn = shown(running.url, job(tmp_path, [{"id": "a\x1b[2J", "text": "One."}]))

    assert "\x1b" not in drawn
    assert drawn.startswith('["a\\u001b[2J"] (rows.csv row 1)\n')


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("plain", "plain"),
        ("a\nb\tc", "a\nb\tc"),
        ("\x1b[31mred", "[31mred"),
        ("\x9b2J", "2J"),
        ("half \ud83d", "half "),
        ("Grüße, 世界 🙂", "Grüße, 世界 🙂"),
    ],
    ids=["plain", "newline and tab", "an escape", "an escape of one byte", "half a character", "other scripts"],
)
def test_only_characters_that_command_a_terminal_are_removed(text: str, left: str) -> None:
    assert stripped(text) == left


@pytest.mark.parametrize("text", ["[bold]not ours[/bold] :smile: 12", "x" * 500, "ends with blanks   \n"])
def test_text_is_drawn_unchanged(tmp_path: Path, text: str) -> None:
    with answering(begun(), *said(text), *ended()) as url:
        asked, console = job(tmp_path), colored()
        show(client(url), picked(asked), asked, console)

    assert text in written(console)


# -- the order -------------------------------------------------------------------------------------------------------


class Holding(httpx2.AsyncHTTPTransport):
    """Real HTTP that delays a call with `text` in it until `released` is set."""

    def __init__(self, text: bytes, released: asyncio.Event) -> None:
        super().__init__()
        self._text, self._released = text, released
        self.answered: list[bytes] = []  #: the requests in the order in which their answers came

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        content = await request.aread()
        if self._text in content:
            await asyncio.wait_for(self._released.wait(), SECONDS)
        response = await super().handle_async_request(request)
        self.answered.append(content)
        return response


def through(transport: httpx2.AsyncBaseTransport, url: str) -> anthropic.AsyncAnthropic:
    http_client = httpx2.AsyncClient(transport=transport)
    return anthropic.AsyncAnthropic(api_key="test", base_url=url, max_retries=0, http_client=http_client)


def test_rows_are_drawn_in_source_order_although_the_second_answer_arrives_first(
    tmp_path: Path, running: RunningEmulator
) -> None:
    class Releasing(Holding):
        async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
            response = await super().handle_async_request(request)
            await response.aread()  # the second row is answered to its end before the first is asked
            self._released.set()
            return response

    asked = job(tmp_path)
    transport = Releasing(b"number 0", asyncio.Event())
    console = Console(file=io.StringIO(), width=200)

    show(through(transport, running.url), picked(asked, 2), asked, console)

    assert [b"number 1" in content for content in transport.answered] == [True, False]
    assert [line for line in written(console).splitlines() if "rows.csv" in line] == [
        "r0 (rows.csv row 1)",
        "r1 (rows.csv row 2)",
    ]


def test_the_first_row_is_drawn_before_the_second_is_answered(tmp_path: Path, running: RunningEmulator) -> None:
    released = asyncio.Event()

    class Watched(io.StringIO):
        def write(self, text: str) -> int:
            if "number 0" in text:
                released.set()
            return super().write(text)

    asked = job(tmp_path)
    console = Console(file=Watched(), width=200)

    code = show(through(Holding(b"number 1", released), running.url), picked(asked, 2), asked, console)

    assert code == 0  # else the second row had waited in vain


def test_a_text_is_drawn_while_it_arrives(tmp_path: Path) -> None:
    drawn, in_time = threading.Event(), []

    class Watched(io.StringIO):
        def write(self, text: str) -> int:
            if "The ship" in text:
                drawn.set()
            return super().write(text)

    asked = job(tmp_path)
    events = (begun(), *said("The ship"), *ended())
    with answering(*events, before_the_end=lambda: in_time.append(drawn.wait(SECONDS))) as url:
        show(client(url), picked(asked), asked, Console(file=Watched(), width=200))

    assert in_time == [True]


def test_all_rows_are_asked_at_the_same_time(tmp_path: Path, running: RunningEmulator) -> None:
    together = asyncio.Barrier(3)

    class Meeting(httpx2.AsyncHTTPTransport):
        async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
            await asyncio.wait_for(together.wait(), SECONDS)
            return await super().handle_async_request(request)

    asked = job(tmp_path)

    code = show(through(Meeting(), running.url), picked(asked, 3), asked, Console(file=io.StringIO()))

    assert code == 0


# -- what it was -----------------------------------------------------------------------------------------------------


def test_a_truncated_answer_is_reported(tmp_path: Path, running: RunningEmulator) -> None:
    lines = shown(running.url, job(tmp_path, request={"max_tokens": 3})).splitlines()

    assert lines[-2] == ("truncated: the answer stopped at max_tokens; 14 tokens in, 3 out; under $0.0001")


def test_an_unparsable_answer_is_reported_with_its_reason(tmp_path: Path) -> None:
    with answering(begun(), *said("no JSON"), *ended()) as url:
        asked = job(tmp_path, output={"labels": ["good", "bad"]})
        lines = shown(url, asked).splitlines()

    assert lines[-2].startswith("unparsable: the answer is not JSON; ")


def test_a_refused_answer_is_reported(tmp_path: Path) -> None:
    refusal = {"stop_reason": "refusal", "stop_details": {"explanation": "not this"}}

    with answering(begun(), {"type": "message_delta", "delta": refusal}, {"type": "message_stop"}) as url:
        rows = told(url, job(tmp_path))

    assert [(row["status"], row["error_message"]) for row in rows] == [("refused", "not this")]


def test_tokens_written_to_and_read_from_the_cache_are_shown(tmp_path: Path) -> None:
    used = {"cache_read_input_tokens": 4000, "cache_creation_input_tokens": 300}

    with answering(begun(), *said("Yes."), *ended(**used)) as url:
        lines = shown(url, job(tmp_path)).splitlines()

    assert lines[-2] == (
        "succeeded; 4,310 tokens in (4,000 read from the cache, 300 written to the cache), 5 out; $0.0008"
    )


def test_the_json_of_a_row_has_text_values_tokens_and_the_live_price(tmp_path: Path, running: RunningEmulator) -> None:
    rows = told(running.url, job(tmp_path, output={"labels": ["ship", "number"]}))

    (row,) = rows
    tokens = row.pop("tokens")
    assert row.pop("cost_usd") == pytest.approx((tokens["input"] * 1 + tokens["output"] * 5) / 1e6)
    assert tokens["cache_read"] == tokens["cache_write"] == 0
    assert str(row.pop("message_id")).startswith("msg_")
    assert row.pop("request")["messages"] == [{"role": "user", "content": "Text number 0."}]
    assert row == {
        "key": "r0",
        "place": "rows.csv row 1",
        "text": '{"label":"number"}',
        "thinking": None,
        "values": {"label": "number"},
        "status": "succeeded",
        "error_type": None,
        "error_message": None,
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "request_id": None,
        "model": "claude-haiku-4-5-20251001",
    }


def test_the_json_of_a_row_has_its_thinking(tmp_path: Path, running: RunningEmulator) -> None:
    thinking = {"type": "enabled", "budget_tokens": 1024}

    rows = told(running.url, job(tmp_path, request={"max_tokens": 2000, "params": {"thinking": thinking}}))

    assert rows[0]["thinking"] == "[emulated] Looked at the request before answering it."


def test_a_streamed_answer_equals_the_answer_without_streaming(tmp_path: Path, running: RunningEmulator) -> None:
    tools = [{"type": "web_search_20250305", "name": "web_search"}]
    params = {"tools": tools, "thinking": {"type": "enabled", "budget_tokens": 1024}}
    output = {"labels": ["text", "number"], "thinking": True}
    asked = job(tmp_path, request={"max_tokens": 2000, "params": params}, output=output)
    seen: list[Answered] = []

    class Seen(Screen):
        def end(self, answered: Answered) -> None:
            seen.append(answered)

    console = Console(file=io.StringIO())
    asyncio.run(stream(client(running.url), picked(asked), asked, Seen(console)))
    with anthropic.Anthropic(api_key="test", base_url=running.url) as plain:
        whole = plain.post("/v1/messages", cast_to=httpx2.Response, content=picked(asked).rows[0].built.params)

    assert without_ids(seen[0].message) == without_ids(whole.json())


# -- what can go wrong -----------------------------------------------------------------------------------------------


def test_a_row_that_the_api_refuses_is_reported_and_the_others_are_answered(
    tmp_path: Path, running: RunningEmulator
) -> None:
    rows = [{"id": "a", "text": "One.", "model": "claude-none"}, {"id": "b", "text": "Two.", "model": "claude-opus-5"}]
    asked = job(tmp_path, rows, request={"model": "{{ model }}"})
    console = Console(file=io.StringIO(), width=200)

    code = show(client(running.url), picked(asked, 2), asked, console)

    lines = written(console).splitlines()
    assert code == 1
    assert lines[1].startswith("errored: not_found_error: model: claude-none (req_")
    assert lines[-2].startswith("succeeded; ")


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_account_ends_the_preview_before_any_row_is_drawn(
    tmp_path: Path, running: RunningEmulator, status: int
) -> None:
    running.emulator.add_fault(on="messages", do="status", status=status)
    asked, console = job(tmp_path), Console(file=io.StringIO())

    with pytest.raises(InputError, match=f"the API refuses this account: {status} .*; no row was answered"):
        show(client(running.url), picked(asked, 3), asked, console)

    assert written(console) == ""


def test_an_account_refused_half_way_ends_the_preview_after_the_answered_rows(
    tmp_path: Path, running: RunningEmulator
) -> None:
    running.emulator.add_fault(on="messages", do="status", status=401, times=1)
    asked, console = job(tmp_path), Console(file=io.StringIO(), width=200)

    with pytest.raises(AccountStopped, match="the API refuses this account: 401"):
        show(client(running.url), picked(asked, 2), asked, console)

    ends = [line.partition(" ")[0] for line in written(console).splitlines() if line.startswith(("errored", "succ"))]
    assert sorted(ends) == ["errored:", "succeeded;"]


def test_an_address_that_does_not_answer_ends_the_preview(tmp_path: Path) -> None:
    asked = job(tmp_path)

    with pytest.raises(InputError, match=r"no answer from http://127.0.0.1:9: .*; no row was answered"):
        show(client("http://127.0.0.1:9"), picked(asked, 2), asked, Console(file=io.StringIO()))


def test_an_address_that_is_not_the_api_ends_the_preview(tmp_path: Path, running: RunningEmulator) -> None:
    running.emulator.add_fault(on="messages", do="status", status=502, page="html")
    asked = job(tmp_path)

    with pytest.raises(
        InputError, match=r"the API answers 502.*; check ANTHROPIC_BASE_URL or api.base_url; no row was answered"
    ):
        show(client(running.url), picked(asked), asked, Console(file=io.StringIO()))


def test_an_address_that_stops_answering_ends_the_preview_after_the_answered_rows(
    tmp_path: Path, running: RunningEmulator
) -> None:
    running.emulator.add_fault(on="messages", do="drop_before", times=1)
    asked, console = job(tmp_path), Console(file=io.StringIO(), width=200)

    with pytest.raises(ApiUnreachable, match="no answer from"):
        show(client(running.url), picked(asked, 2), asked, console)

    assert "errored: not_asked: no answer from" in written(console)
    assert "succeeded; " in written(console)


def test_an_overloaded_api_is_reported_for_the_row(tmp_path: Path, running: RunningEmulator) -> None:
    running.emulator.add_fault(on="messages", do="status", status=529, times=1)

    rows = told(running.url, job(tmp_path), 2)

    assert sorted((row["status"], row["error_type"] or "") for row in rows) == [
        ("errored", "overloaded_error"),
        ("succeeded", ""),
    ]


def test_an_error_in_the_middle_of_an_answer_is_reported(tmp_path: Path) -> None:
    error = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}

    with answering(begun(), *said("The ship"), error) as url:
        lines = shown(url, job(tmp_path)).splitlines()

    assert lines[1:3] == ["The ship", "errored: overloaded_error: Overloaded"]


@pytest.mark.parametrize("cut", [True, False], ids=["hung up", "ended early"])
def test_an_answer_that_breaks_off_is_reported(tmp_path: Path, cut: bool) -> None:
    with answering(begun(), *said("The ship"), cut=cut) as url:
        lines = shown(url, job(tmp_path)).splitlines()

    assert lines[1] == "The ship"
    assert lines[2].startswith("errored: connection_error: the answer broke off before its end")


def test_a_malformed_event_is_reported(tmp_path: Path) -> None:
    with answering(begun(), {"type": "content_block_start", "index": 0}) as url:
        rows = told(url, job(tmp_path))

    assert rows[0]["error_message"].endswith("(ValueError: an event 'content_block_start' that is not understood)")


def test_unknown_events_and_blocks_of_a_later_api_are_ignored(tmp_path: Path) -> None:
    later = block(0, {"type": "dream", "of": "sheep"}, {"type": "dream_delta", "of": "electric"})

    with answering({"type": "hum"}, begun(), *later, *said("Yes.", 1), *ended()) as url:
        rows = told(url, job(tmp_path))

    assert [(row["text"], row["status"]) for row in rows] == [("Yes.", "succeeded")]


def test_tool_input_that_is_cut_off_is_drawn_up_to_its_end(tmp_path: Path) -> None:
    used = block(
        0,
        {"type": "tool_use", "id": "t", "name": "record", "input": {}},
        {"type": "input_json_delta", "partial_json": '{"name": "The sh'},
    )
    stopped = {"type": "message_delta", "delta": {"stop_reason": "max_tokens"}, "usage": {"output_tokens": 5}}

    with answering(begun(), *used, stopped, {"type": "message_stop"}) as url:
        lines = shown(url, job(tmp_path)).splitlines()

    assert lines[1] == 'record {"name": "The sh'
    assert lines[2].startswith("truncated: ")


# -- the client ------------------------------------------------------------------------------------------------------


def test_betas_and_fields_unknown_to_the_sdk_reach_the_api(tmp_path: Path) -> None:
    class Recording(httpx2.AsyncHTTPTransport):
        async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
            sent.append((request.headers.get("anthropic-beta"), await request.aread()))
            return await super().handle_async_request(request)

    sent: list[tuple[str | None, bytes]] = []
    asked = job(tmp_path, request={"betas": ["dreams-2026-11-01", "more"], "params": {"dreams": {"of": "sheep"}}})

    with answering(begun(), *said("Yes."), *ended()) as url:
        show(through(Recording(), url), picked(asked), asked, Console(file=io.StringIO()))

    ((betas, body),) = sent
    assert betas == "dreams-2026-11-01,more"
    assert orjson.loads(body) == {**orjson.loads(picked(asked).rows[0].built.params), "stream": True}


def test_without_a_key_the_preview_says_how_to_give_one(
    tmp_path: Path, running: RunningEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    asked = job(tmp_path)

    with pytest.raises(InputError, match="no API key: set ANTHROPIC_API_KEY"):
        show(async_client(Reach("default", 5, running.url)), picked(asked), asked, Console(file=io.StringIO()))


def test_a_cloud_client_that_cannot_be_created_is_wrong_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "ANTHROPIC_AWS_WORKSPACE_ID"):
        monkeypatch.delenv(name, raising=False)

    with pytest.raises(InputError, match=r"api.client aws: no credentials: No AWS region"):
        async_client(Reach("aws", 5))


# -- which rows, and what they ask -------------------------------------------------------------------------------------


def keys_of(rows: Picked) -> list[str]:
    return [row.key for row in rows.rows]


def test_rows_selected_by_key_are_shown_in_the_order_given(tmp_path: Path) -> None:
    plan = Plan(job(tmp_path, texts(50)))

    assert keys_of(pick(plan, 3, keys=["r40", "r7"])) == ["r40", "r7"]
    with pytest.raises(SourceError, match="--key r50: no row of the source has this key"):
        pick(plan, 3, keys=["r1", "r50"])


def test_a_sample_covers_the_whole_source_and_does_not_depend_on_its_order(tmp_path: Path) -> None:
    rows = texts(3000)

    chosen = keys_of(pick(Plan(job(tmp_path, rows)), 5, sample=True))
    turned = keys_of(pick(Plan(job(tmp_path, rows[::-1])), 5, sample=True))

    assert chosen == turned
    assert len(set(chosen)) == 5
    assert max(int(key[1:]) for key in chosen) > 100


def test_rows_of_a_sample_that_cannot_be_sent_are_replaced_by_others(tmp_path: Path) -> None:
    rows = [{"id": f"r{i}", "text": "" if i % 2 else "One."} for i in range(100)]

    found = pick(Plan(job(tmp_path, rows)), 5, sample=True)

    assert len(found.rows) == 5
    assert found.left_out > 0
    assert pick(Plan(job(tmp_path, texts(2))), 5, sample=True).left_out == 0


def test_the_input_of_a_row_is_shown_before_its_answer(tmp_path: Path, running: RunningEmulator) -> None:
    asked = job(tmp_path, [{"id": "a", "text": "One.\n\x1b[2JTwo."}])
    console = Console(file=io.StringIO(), width=200)

    show(client(running.url), picked(asked), asked, console)

    lines = drawn(console).splitlines()
    assert lines[:3] == ["a (rows.csv row 1)", "> One.", "> [2JTwo."]
    assert lines[3].startswith("[emulated] One.")
    [row] = told(running.url, asked)
    assert row["request"]["messages"] == [{"role": "user", "content": "One.\n\x1b[2JTwo."}]


def test_only_the_beginning_of_a_long_input_is_shown() -> None:
    content = [{"type": "image", "source": {}}, {"type": "text", "text": "x" * 500 + "\ny" * 20}]

    shown = input_lines(orjson.dumps({"messages": [{"role": "user", "content": content}]}))

    assert shown == ["[image]", "x" * 400 + "... (500 characters)", *["y"] * 10, "... (10 more lines)"]
