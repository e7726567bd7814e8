"""Each result of the API becomes one outcome, also a result of an unknown type or form."""

from typing import Any

import orjson
import pytest

from pipeline.answer.outcome import Outcome, ResultReader, without_usage
from pipeline.job.model import Job
from pipeline.states import OUTCOMES, RowState


def reader(labels: list[str] | None = None, **retry: Any) -> ResultReader:
    whole = {
        "name": "j",
        "source": {"path": "a.csv", "key": "id"},
        "request": {"model": "claude-haiku-4-5", "max_tokens": 10, "prompt": "{{ body }}"},
        "sink": {"table": "t"},
        "retry": retry,
    }
    return ResultReader(Job.model_validate(whole | ({"output": {"labels": labels}} if labels else {})))


def answered(*content: Any, **message: Any) -> dict[str, Any]:
    """A succeeded result line. content: blocks, or texts for text blocks."""
    blocks = [{"type": "text", "text": block} if isinstance(block, str) else block for block in content]
    fields = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-haiku-4-5-20251001",
        "content": blocks,
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 10, "output_tokens": 5},
    }
    return {"custom_id": "x-0", "result": {"type": "succeeded", "message": fields | message}}


def errored(error: Any) -> dict[str, Any]:
    return {"custom_id": "x-0", "result": {"type": "errored", "error": error}}


# -- answers -----------------------------------------------------------------------------------------------------------


def test_an_answer_is_its_text_with_model_stop_reason_and_tokens() -> None:
    usage = {
        "input_tokens": 10,
        "output_tokens": 5,
        "cache_read_input_tokens": 7,
        "cache_creation_input_tokens": 9,
        "cache_creation": {"ephemeral_5m_input_tokens": 3, "ephemeral_1h_input_tokens": 6},
    }

    outcome = reader().outcome(answered("The ship sank.", usage=usage))

    assert outcome == Outcome(
        RowState.SUCCEEDED,
        text="The ship sank.",
        stop_reason="end_turn",
        model="claude-haiku-4-5-20251001",
        input_tokens=10,
        output_tokens=5,
        cache_read_tokens=7,
        cache_write_tokens=9,
        cache_write_1h_tokens=6,
        message_id="msg_1",
    )


@pytest.mark.parametrize(
    ("content", "text"),
    [
        pytest.param(["one"], "one", id="one block"),
        pytest.param(["one ", "two"], "one two", id="several blocks"),
        pytest.param([{"type": "thinking", "thinking": "hm", "signature": "s"}, "one"], "one", id="thinking first"),
        pytest.param([{"type": "redacted_thinking", "data": "x"}, "one"], "one", id="hidden thinking first"),
        pytest.param(["a", {"type": "tool_use", "id": "t", "name": "n", "input": {}}, "b"], "ab", id="a tool between"),
        pytest.param([{"type": "block_of_next_year", "text": "no"}, "one"], "one", id="a block of an unknown type"),
        pytest.param([{"type": "text", "text": "one", "citations": [], "new": 1}], "one", id="unknown fields"),
        pytest.param(["a\u2028b\u0085c\x0bd\r\n"], "a\u2028b\u0085c\x0bd\r\n", id="odd line ends"),
        pytest.param(["  blanks \n"], "  blanks \n", id="blanks"),
        pytest.param([], "", id="no block"),
    ],
)
def test_the_text_is_that_of_the_text_blocks(content: list[Any], text: str) -> None:
    outcome = reader().outcome(answered(*content))

    assert (outcome.state, outcome.text) == (RowState.SUCCEEDED, text)


@pytest.mark.parametrize(
    "usage",
    [
        pytest.param({}, id="empty"),
        pytest.param(None, id="none"),
        pytest.param(
            {
                "input_tokens": None,
                "output_tokens": None,
                "cache_read_input_tokens": None,
                "cache_creation_input_tokens": None,
                "cache_creation": None,
            },
            id="nulls",
        ),
    ],
)
def test_missing_usage_counts_as_zero_tokens(usage: Any) -> None:
    outcome = reader().outcome(answered("x", usage=usage))

    assert outcome.state == RowState.SUCCEEDED
    assert (outcome.input_tokens, outcome.output_tokens, outcome.cache_read_tokens, outcome.cache_write_tokens) == (
        0,
        0,
        0,
        0,
    )


@pytest.mark.parametrize("stop_reason", ["end_turn", "stop_sequence", "tool_use", "reason_of_next_year", None])
def test_other_stop_reasons_are_success(stop_reason: str | None) -> None:
    outcome = reader().outcome(answered("x", stop_reason=stop_reason))

    assert (outcome.state, outcome.stop_reason, outcome.error_type) == (RowState.SUCCEEDED, stop_reason, None)


@pytest.mark.parametrize(
    ("stop_reason", "said"),
    [
        pytest.param("max_tokens", "stopped at max_tokens", id="max_tokens"),
        pytest.param("model_context_window_exceeded", "context window", id="context window"),
        pytest.param("pause_turn", "paused its turn", id="pause_turn"),
    ],
)
def test_a_cut_off_answer_is_truncated_and_keeps_its_text_and_bill(stop_reason: str, said: str) -> None:
    outcome = reader(["yes", "no"]).outcome(answered('{"label": "yes"}', stop_reason=stop_reason))

    assert (outcome.state, outcome.stop_reason) == (RowState.TRUNCATED, stop_reason)
    assert said in str(outcome.error_message)
    assert (outcome.text, outcome.values, outcome.output_tokens) == ('{"label": "yes"}', None, 5)


@pytest.mark.parametrize(
    ("details", "said"),
    [
        pytest.param({"type": "refusal", "category": "cyber", "explanation": "no such help"}, "no such help", id="why"),
        pytest.param({"category": "cyber", "explanation": None}, "cyber", id="category"),
        pytest.param({}, "the model refused", id="empty"),
        pytest.param(None, "the model refused", id="none"),
    ],
)
def test_a_refusal_has_the_outcome_refused_and_its_explanation(details: Any, said: str) -> None:
    outcome = reader(["yes", "no"]).outcome(answered("I cannot.", stop_reason="refusal", stop_details=details))

    assert (outcome.state, outcome.error_type, outcome.error_message) == (RowState.REFUSED, "refusal", said)
    assert (outcome.text, outcome.input_tokens) == ("I cannot.", 10)


# -- labels ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "label", "rest"),
    [
        pytest.param('{"label": "billing"}', "billing", None, id="as declared"),
        pytest.param('{"label": "BILLING"}', "billing", None, id="in capitals"),
        pytest.param('{"label": "  billing\\n"}', "billing", None, id="with blanks"),
        pytest.param('{"label": "how to"}', " How To ", None, id="a label that was declared with blanks"),
        pytest.param('{"label": "STRASSE"}', "Straße", None, id="folded as Unicode does"),
        pytest.param('{"label": "no", "why": "x"}', "no", '{"why":"x"}', id="beside other fields"),
        pytest.param('\n {"label":"no"} \n', "no", None, id="blanks around the JSON"),
    ],
)
def test_a_label_is_stored_as_declared_and_once(answer: str, label: str, rest: str | None) -> None:
    outcome = reader(["billing", " How To ", "Straße", "no"]).outcome(answered(answer))

    assert (outcome.state, outcome.values, outcome.text) == (RowState.SUCCEEDED, {"label": label}, rest)


def test_a_label_after_a_thinking_block_and_in_two_parts_is_found() -> None:
    thinking = {"type": "thinking", "thinking": '{"label": "no"}'}

    outcome = reader(["yes", "no"]).outcome(answered(thinking, '{"label": ', '"yes"}'))

    assert outcome.values == {"label": "yes"}


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        pytest.param("billing", "the answer is not JSON", id="bare word"),
        pytest.param("", "the answer is not JSON", id="nothing"),
        pytest.param('```json\n{"label": "no"}\n```', "the answer is not JSON", id="fenced"),
        pytest.param('{"label": "no"', "the answer is not JSON", id="cut off"),
        pytest.param('["no"]', "has no text field 'label'", id="a list"),
        pytest.param('"no"', "has no text field 'label'", id="a text"),
        pytest.param("{}", "has no text field 'label'", id="no label"),
        pytest.param('{"label": 5}', "has no text field 'label'", id="a number"),
        pytest.param('{"label": null}', "has no text field 'label'", id="a null"),
        pytest.param('{"label": "maybe"}', "'maybe' is not one of the declared labels", id="another label"),
        pytest.param('{"label": "yes no"}', "'yes no' is not one of the declared labels", id="two labels"),
    ],
)
def test_an_answer_without_a_declared_label_is_unparsable_and_kept(answer: str, said: str) -> None:
    outcome = reader(["yes", "no"]).outcome(answered(answer))

    assert (outcome.state, outcome.error_type, outcome.values) == (RowState.UNPARSABLE, "unparsable", None)
    assert said in str(outcome.error_message)
    assert (outcome.text, outcome.output_tokens) == (answer, 5)


def test_a_very_long_wrong_label_is_shortened_in_the_message() -> None:
    outcome = reader(["yes", "no"]).outcome(answered('{"label": "%s"}' % ("x" * 5000)))

    assert len(str(outcome.error_message)) < 200


def test_without_labels_any_answer_succeeds() -> None:
    assert reader().outcome(answered('{"label": "yes"}')).values is None


# -- everything else ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "error_type", "message"),
    [
        pytest.param(
            {
                "type": "error",
                "error": {"type": "invalid_request_error", "message": "max_tokens: too large"},
                "request_id": "req_1",
            },
            "invalid_request_error",
            "max_tokens: too large",
            id="nested, with a request id",
        ),
        pytest.param(
            {"type": "error", "error": {"type": "api_error", "message": "Internal"}, "request_id": None},
            "api_error",
            "Internal",
            id="nested, without one",
        ),
        pytest.param({"type": "overloaded_error", "message": "Busy"}, "overloaded_error", "Busy", id="flat"),
        pytest.param(
            {"type": "error", "error": {"type": "error_of_next_year", "message": "?"}},
            "error_of_next_year",
            "?",
            id="an unknown type",
        ),
        pytest.param({"type": "error", "error": {"message": "m"}}, "unknown_error", "m", id="no type"),
        pytest.param({"type": "api_error"}, "api_error", "no message", id="no message"),
        pytest.param({}, "unknown_error", "no message", id="empty"),
        pytest.param(None, "unknown_error", "no message", id="none"),
        pytest.param("text", "unknown_error", "no message", id="a text"),
    ],
)
def test_an_error_is_stored_with_its_type_and_message(error: Any, error_type: str, message: str) -> None:
    outcome = reader().outcome(errored(error))

    request_id = error.get("request_id") if isinstance(error, dict) else None
    assert outcome == Outcome(RowState.ERRORED, error_type, message, request_id=request_id)


@pytest.mark.parametrize(
    ("kind", "state"), [("canceled", RowState.CANCELED), ("expired", RowState.EXPIRED)], ids=["canceled", "expired"]
)
def test_a_request_that_was_not_processed_costs_nothing_and_has_no_text(kind: str, state: RowState) -> None:
    outcome = reader().outcome({"custom_id": "x-0", "result": {"type": kind}})

    assert (outcome.state, outcome.error_type, outcome.text, outcome.model) == (state, kind, None, None)
    assert outcome.error_message
    assert outcome.input_tokens == outcome.output_tokens == 0


@pytest.mark.parametrize(
    ("line", "named"),
    [
        pytest.param({"result": {"type": "paused"}}, "'paused'", id="an unknown type"),
        pytest.param({"result": {}}, "None", id="no type"),
        pytest.param({"result": None}, "None", id="no result"),
        pytest.param({}, "None", id="an empty line"),
        pytest.param({"result": {"type": "succeeded"}}, "'succeeded'", id="an answer without a message"),
        pytest.param({"result": {"type": "succeeded", "message": "x"}}, "'succeeded'", id="a message that is a text"),
    ],
)
def test_a_result_of_an_unknown_type_is_an_error_that_names_the_type(line: dict[str, Any], named: str) -> None:
    outcome = reader().outcome(line)

    assert (outcome.state, outcome.error_type) == (RowState.ERRORED, "unknown_result")
    assert named in str(outcome.error_message)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(["just text"], id="a text in place of a block"),
        pytest.param([{"type": "text"}], id="a text block without text"),
        pytest.param([None], id="a null"),
    ],
)
def test_a_malformed_content_block_does_not_crash(content: list[Any]) -> None:
    line = answered()
    line["result"]["message"]["content"] = content

    outcome = reader().outcome(line)

    assert outcome.state in OUTCOMES


# -- sending again -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcome", "attempts", "again"),
    [
        pytest.param(Outcome(RowState.ERRORED, "api_error"), 1, True, id="a fault of the API"),
        pytest.param(Outcome(RowState.ERRORED, "overloaded_error"), 2, True, id="overload, second attempt"),
        pytest.param(Outcome(RowState.ERRORED, "overloaded_error"), 3, False, id="overload, last attempt"),
        pytest.param(Outcome(RowState.EXPIRED, "expired"), 1, True, id="expired"),
        pytest.param(Outcome(RowState.ERRORED, "invalid_request_error"), 1, False, id="a wrong request"),
        pytest.param(Outcome(RowState.ERRORED, "unknown_result"), 1, False, id="what is not known"),
        pytest.param(Outcome(RowState.CANCELED, "canceled"), 1, False, id="canceled by a person"),
        pytest.param(Outcome(RowState.TRUNCATED, "max_tokens"), 1, False, id="truncated"),
        pytest.param(Outcome(RowState.REFUSED, "refusal"), 1, False, id="refused"),
        pytest.param(Outcome(RowState.UNPARSABLE, "unparsable"), 1, False, id="unparsable"),
        pytest.param(Outcome(RowState.SUCCEEDED), 1, False, id="succeeded"),
    ],
)
def test_only_outcomes_that_a_retry_may_improve_are_sent_again(outcome: Outcome, attempts: int, again: bool) -> None:
    assert reader().should_retry(outcome, attempts) is again


def test_retry_errors_and_max_attempts_decide_what_is_sent_again() -> None:
    once = reader(errors=["invalid_request_error"], max_attempts=2)

    assert once.should_retry(Outcome(RowState.ERRORED, "invalid_request_error"), 1)
    assert not once.should_retry(Outcome(RowState.ERRORED, "invalid_request_error"), 2)
    assert not once.should_retry(Outcome(RowState.ERRORED, "api_error"), 1)


def test_a_row_that_shares_an_answer_has_all_of_it_but_its_usage() -> None:
    outcome = reader().outcome(answered("x", usage={"input_tokens": 10, "cache_creation_input_tokens": 4}))

    shared = without_usage(outcome)

    assert (shared.state, shared.text, shared.model) == (outcome.state, "x", outcome.model)
    assert [getattr(shared, name) for name in Outcome._fields if name.endswith("_tokens")] == [0] * 5


# -- schemas, tools, and what else an output asks for ------------------------------------------------------------------

INVOICE = {
    "type": "object",
    "properties": {
        "total": {"type": "number"},
        "paid": {"type": "boolean"},
        "due": {"type": "string", "format": "date"},
        "from": {"type": "object", "properties": {"town": {"type": "string"}}, "additionalProperties": False},
    },
    "required": ["total"],
    "additionalProperties": False,
}
TOOL = {"name": "record", "input_schema": INVOICE}
USE = {"type": "tool_use", "id": "toolu_1", "name": "record", "input": {"total": 9.5}}


def asked(output: dict[str, Any], **params: Any) -> ResultReader:
    request = {"model": "claude-haiku-4-5", "max_tokens": 10, "prompt": "{{ body }}", "params": params}
    source, sink = {"path": "a.csv", "key": "id"}, {"table": "t"}
    fields = {"name": "j", "source": source, "request": request, "sink": sink, "output": output}
    return ResultReader(Job.model_validate(fields))


def test_an_answer_by_a_schema_gives_a_value_for_each_column() -> None:
    read = asked({"schema": INVOICE, "columns": {"from.town": "town", "paid": "is_paid"}})

    outcome = read.outcome(answered('{"total": 9.5, "paid": true, "due": "2026-11-30", "from": {"town": "Rome"}}'))

    values = {"total": 9.5, "is_paid": True, "due": "2026-11-30", "town": "Rome"}  # all of `from`
    assert (outcome.state, outcome.values, outcome.text) == (RowState.SUCCEEDED, values, None)


AHEAD = "2026-11-30T10:00:00+02:00"

FREE = {
    "name": "record",
    "input_schema": {
        "type": "object",
        "properties": {
            "at": {"type": "string", "format": "date-time"},
            "n": {"type": "number"},
            "where": {"type": "object", "properties": {"town": {"type": "string"}}},
        },
    },
}


@pytest.mark.parametrize(
    ("given", "values", "text"),
    [
        ({"n": 1, "at": "2026-11-30T10:00:00Z"}, {"n": 1, "at": "2026-11-30T10:00:00Z"}, None),
        ({"n": 1, "more": [1]}, {"n": 1}, '{"more":[1]}'),
        (
            {"at": "2026-11-30T10:00:00+02:00"},
            {"at": "2026-11-30T10:00:00+02:00"},
            '{"at":"2026-11-30T10:00:00+02:00"}',
        ),
        ({"n": 2**60 + 1}, {"n": 2**60 + 1}, f'{{"n":{2**60 + 1}}}'),
        ({"where": {"town": "Rome", "zip": "1"}}, {"town": "Rome", "where": {"zip": "1"}}, None),
        ({"where": {"town": "Rome"}}, {"town": "Rome"}, None),
        ({"where": {}}, {"where": {}}, None),
    ],
    ids=[
        *("all in columns", "a property without a column", "an offset that the column cannot hold"),
        *("a number that the column cannot hold", "an object without what has a column", "nothing left", "empty"),
    ],
)
def test_the_text_holds_only_the_parts_of_an_answer_that_no_column_holds(
    given: dict[str, Any], values: dict[str, Any], text: str | None
) -> None:
    read = asked({"tool": "record", "columns": {"where.town": "town"}}, tools=[FREE])

    outcome = read.outcome(answered({**USE, "input": given}, stop_reason="tool_use"))

    empty = dict.fromkeys(("at", "n", "where", "town"))
    assert (outcome.state, outcome.values, outcome.text) == (RowState.SUCCEEDED, {**empty, **values}, text)


def test_text_that_accompanies_a_tool_use_is_kept() -> None:
    said = answered("I note it.", {**USE, "input": {"more": 1}}, stop_reason="tool_use")

    assert asked({"tool": "record"}, tools=[FREE]).outcome(said).text == 'I note it.\n{"more":1}'


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        pytest.param("No invoice.", "the answer is not JSON", id="no JSON"),
        pytest.param('{"total": "much"}', "total: 'much' is not of type 'number'", id="a wrong type"),
        pytest.param("{}", "'total' is a required property", id="a property that is missing"),
        pytest.param('{"total": 1, "due": "soon"}', "due: 'soon' is not a date", id="no date"),
    ],
)
def test_an_answer_that_does_not_fit_the_schema_is_unparsable_with_the_path(answer: str, said: str) -> None:
    outcome = asked({"schema": INVOICE}).outcome(answered(answer))

    assert (outcome.state, outcome.values, outcome.text) == (RowState.UNPARSABLE, None, answer)
    assert said in str(outcome.error_message)


def test_the_input_of_a_forced_tool_is_the_answer() -> None:
    outcome = asked({"tool": "record"}, tools=[TOOL]).outcome(answered(USE, stop_reason="tool_use"))

    assert (outcome.state, outcome.text) == (RowState.SUCCEEDED, None)
    assert outcome.values == {"total": 9.5, "paid": None, "due": None, "from": None}


def test_an_answer_without_the_tool_is_unparsable() -> None:
    outcome = asked({"tool": "record"}, tools=[TOOL]).outcome(answered("I would rather not."))

    assert (outcome.state, outcome.error_message) == (RowState.UNPARSABLE, "the answer does not use the tool record")


def test_the_use_of_a_client_tool_is_stored_with_name_and_input() -> None:
    outcome = asked({}, tools=[TOOL]).outcome(answered("I note it.", USE, stop_reason="tool_use"))

    assert (outcome.state, outcome.text) == (RowState.SUCCEEDED, "I note it.")
    assert outcome.values == {"tool_use": [{"name": "record", "input": {"total": 9.5}}]}


def test_thinking_and_citations_are_kept_when_they_are_asked_for() -> None:
    thought = {"type": "thinking", "thinking": "Hm.", "signature": "s"}
    cited = {"type": "text", "text": "It sank.", "citations": [{"type": "char_location", "cited_text": "sank"}]}

    outcome = asked({"thinking": True, "citations": True}).outcome(answered(thought, cited))

    assert outcome.values == {"thinking": "Hm.", "citations": cited["citations"]}
    assert asked({}).outcome(answered(thought, cited)).values is None


#: Messages as the API may send them: with what tells apart a copy that was made again.
WHOLE = (
    '{"id":"msg_1","type":"message","role":"assistant","content":['
    '{"type":"thinking","thinking":"","signature":"EqQB+/=="},'
    '{"type":"text","text":"It sank.","citations":[{"type":"char_location","cited_text":"sank"}]},'
    '{"type":"tool_use","id":"toolu_1","name":"record","input":{"n":123456789012345678901234567890,"x":1.10}},'
    '{"type":"compaction","content":"Before.","block_of_next_year":{"z":1,"a":null}}],'
    '"stop_reason":"%s","usage":{"input_tokens":1,"output_tokens":2,"new":[ 1 ]}}'
)


@pytest.mark.parametrize(
    ("output", "message", "state"),
    [
        pytest.param({}, WHOLE % "end_turn", RowState.SUCCEEDED, id="an answer"),
        pytest.param({}, WHOLE % "pause_turn", RowState.TRUNCATED, id="a paused turn"),
        pytest.param({}, WHOLE % "refusal", RowState.REFUSED, id="a refusal"),
        pytest.param({"labels": ["yes", "no"]}, WHOLE % "end_turn", RowState.UNPARSABLE, id="no label"),
        pytest.param({}, '{"content": [{"type": "text", "text": "\\ud800"}]}', RowState.UNPARSABLE, id="half a letter"),
        pytest.param({}, '{"content":[{"type":"text","text":"é"}],"usage":7}', RowState.UNPARSABLE, id="malformed"),
        pytest.param(
            {}, '{"content": [{"type":"text","text":"a plain one"}]}', RowState.SUCCEEDED, id="a plain answer"
        ),
    ],
)
def test_the_whole_message_is_kept_as_it_was_sent(output: dict[str, Any], message: str, state: RowState) -> None:
    line = f'{{"custom_id":"x-0","result":{{"type":"succeeded","message":{message}}}}}'

    outcome = asked({"message": True, **output}).read(line.encode())

    assert outcome is not None
    assert (outcome.state, outcome.values) == (state, {"message": message})
    assert asked(output).read(line.encode()) == outcome._replace(values=None)


def test_an_error_has_no_message() -> None:
    lines = [errored({"type": "api_error"}), {"result": {"type": "expired"}}, {"result": {"type": "succeeded"}}]

    outcomes = [asked({"message": True}).read(orjson.dumps(line)) for line in lines]

    assert [outcome and outcome.values for outcome in outcomes] == [{"message": None}] * 3


def test_tools_that_the_api_ran_are_counted_and_web_searches_priced() -> None:
    use = {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "ships"}}
    usage = {
        "input_tokens": 1,
        "output_tokens": 1,
        "server_tool_use": {"web_search_requests": 2, "web_fetch_requests": 0},
    }
    tool = {"type": "web_search_20250305", "name": "web_search"}

    outcome = asked({}, tools=[tool]).outcome(answered(use, "Found.", usage=usage))

    assert outcome.values == {"server_tool_use": {"web_search": 1, "web_search_requests": 2}}
    assert outcome.web_searches == 2


def test_the_tokens_of_a_compaction_are_counted_although_the_usage_leaves_them_out() -> None:
    usage = {
        "input_tokens": 23_000,
        "output_tokens": 1_000,
        "iterations": [
            {"type": "compaction", "input_tokens": 180_000, "output_tokens": 3_500, "cache_read_input_tokens": 7},
            {"type": "message", "input_tokens": 23_000, "output_tokens": 1_000},
        ],
    }

    outcome = reader().outcome(answered("x", usage=usage))

    assert (outcome.input_tokens, outcome.output_tokens, outcome.cache_read_tokens) == (203_000, 4_500, 7)
    assert reader().outcome(answered("x", usage=usage | {"iterations": [7]})).state == RowState.UNPARSABLE


def test_an_answer_that_stops_after_its_compaction_is_truncated() -> None:
    block = {"type": "compaction", "content": "Before."}

    outcome = reader().outcome(answered(block, stop_reason="compaction"))

    assert (outcome.state, outcome.error_type, outcome.text) == (RowState.TRUNCATED, "compaction", "")


def test_inference_only_in_the_us_is_read_from_the_usage() -> None:
    usage = {"input_tokens": 1, "output_tokens": 1, "inference_geo": "us"}

    assert reader().outcome(answered("x", usage=usage)).in_the_us
    assert not reader().outcome(answered("x")).in_the_us


@pytest.mark.parametrize(
    ("change", "outcome", "error_type", "again"),
    [
        pytest.param({"truncated": {"max_tokens": "2x"}}, RowState.TRUNCATED, "max_tokens", True, id="cut off"),
        pytest.param(
            {"truncated": {"max_tokens": "2x"}}, RowState.TRUNCATED, "pause_turn", False, id="more tokens do not help"
        ),
        pytest.param({"refused": {"model": "claude-sonnet-5"}}, RowState.REFUSED, "refusal", True, id="refused"),
        pytest.param({"unparsable": {"reask": True}}, RowState.UNPARSABLE, "unparsable", True, id="unparsable"),
        pytest.param({"unparsable": {"reask": False}}, RowState.UNPARSABLE, "unparsable", False, id="off again"),
        pytest.param({"truncated": {"max_tokens": "2x"}}, RowState.REFUSED, "refusal", False, id="another outcome"),
    ],
)
def test_which_outcomes_are_sent_again_with_a_change(
    change: dict[str, Any], outcome: RowState, error_type: str, again: bool
) -> None:
    read = reader(change=change)

    assert read.should_retry(Outcome(outcome, error_type), 2) is again
    assert not read.should_retry(Outcome(outcome, error_type), 3)
