"""A body has the form and the limits of the API, and its bytes are counted exactly."""

import hashlib
import re
from collections.abc import Iterable

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.money.budget import Bound
from pipeline.request import packing
from pipeline.request.packing import Packing, Requests

NONCE = "a" * 26


def params(text: str) -> bytes:
    return orjson.dumps({"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": text}]})


def digest(of: bytes) -> bytes:
    return hashlib.blake2b(of, digest_size=16).digest()


def requests(texts: Iterable[str]) -> Requests:
    """Return requests with these prompts; no price is known."""
    of_texts = [params(text) for text in texts]
    return Requests([digest(each) for each in of_texts], of_texts, [None] * len(of_texts))


def packed(body: Packing, texts: Iterable[str], *, dedupe: bool = False) -> tuple[bytes, list[int]]:
    """Fill a body until it is full. Return its bytes and the position of each text that fitted."""
    given, lines, positions = requests(texts), [packing.PREFIX], list[int]()
    while (filled := body.fill(given, len(positions), dedupe=dedupe)).positions:
        lines += filled.lines
        positions += filled.positions
    return b"".join([*lines, packing.SUFFIX]), positions


@pytest.mark.parametrize("count", [1, 2, 9, 10, 11, 99, 100, 101, 1000])
@pytest.mark.parametrize("text", ["plain", "ä€😀\u2028 العربية", '"\\\n'], ids=["ASCII", "multibyte", "escapes"])
def test_the_size_of_a_body_is_exact_to_the_byte(count: int, text: str) -> None:
    body = Packing(NONCE, 100_000, 256_000_000)

    written, positions = packed(body, (f"{text} {n}" for n in range(count)))

    assert body.size == len(written)
    assert positions == list(range(count))
    assert body.requests == body.rows == count


def test_a_body_is_json_in_the_form_of_the_api() -> None:
    body = Packing(NONCE, 10, 10_000)

    written, _ = packed(body, ["one", "zwei ä", "three\n"])

    parsed = orjson.loads(written)
    assert parsed == {
        "requests": [
            {"custom_id": f"{NONCE}-{n}", "params": orjson.loads(params(text))}
            for n, text in enumerate(["one", "zwei ä", "three\n"])
        ]
    }


@pytest.mark.parametrize("text", ["x", "ä€😀", "a longer text of several words"], ids=["short", "multibyte", "long"])
def test_a_body_is_filled_to_its_limit_of_bytes_and_not_beyond(text: str) -> None:
    exact = packed(Packing(NONCE, 100, 10_000_000), [text] * 11)[0]

    just_fits, rows_fit = packed(Packing(NONCE, 100, len(exact)), [text] * 12)
    one_less, rows_less = packed(Packing(NONCE, 100, len(exact) - 1), [text] * 12)

    assert (len(just_fits), len(rows_fit)) == (len(exact), 11)
    assert len(rows_less) == 10
    assert len(one_less) < len(exact)


@pytest.mark.parametrize("limit", [1, 9, 10, 11])
def test_a_body_holds_no_more_requests_than_allowed(limit: int) -> None:
    body = Packing(NONCE, limit, 1_000_000)

    written, positions = packed(body, (str(n) for n in range(20)))

    assert body.requests == body.rows == len(positions) == limit
    assert len(orjson.loads(written)["requests"]) == limit


def test_a_full_body_refuses_another_request_and_is_unchanged() -> None:
    body = Packing(NONCE, 1, 1_000_000)
    packed(body, ["one"])
    size = body.size

    refused = body.fill(requests(["two"]), dedupe=True)

    assert refused == ([], [])
    assert (body.size, body.requests, body.rows) == (size, 1, 1)
    assert digest(params("two")) not in body.seen


def test_the_largest_params_fit_alone_and_one_byte_more_does_not_fit() -> None:
    largest = packing.largest_params(1_000)

    fits, too_large = (
        Packing(NONCE, 10, 1_000).fill(Requests([b""], [b"x" * size], [None]), dedupe=False)
        for size in (largest, largest + 1)
    )

    assert len(packing.PREFIX) + sum(map(len, fits.lines)) + len(packing.SUFFIX) == 1_000
    assert too_large == ([], [])


def test_equal_requests_share_one_request_and_add_no_bytes() -> None:
    body = Packing(NONCE, 100, 1_000_000)

    written, positions = packed(body, ["a", "b", "a", "a", "b"], dedupe=True)

    assert positions == [0, 1, 0, 0, 1]
    assert body.requests == 2
    assert body.size == len(written)
    assert len(orjson.loads(written)["requests"]) == 2


def test_equal_requests_are_each_sent_without_dedupe() -> None:
    body = Packing(NONCE, 100, 1_000_000)

    written, positions = packed(body, ["a", "a", "a"], dedupe=False)

    assert positions == [0, 1, 2]
    assert len(orjson.loads(written)["requests"]) == 3


def test_an_equal_request_still_joins_a_full_body() -> None:
    body = Packing(NONCE, 1, 1_000_000)

    _, positions = packed(body, ["a", "a"], dedupe=True)

    assert positions == [0, 0]


def test_a_body_holds_at_most_four_rows_per_allowed_request() -> None:
    body = Packing(NONCE, 5, 1_000_000)

    _, positions = packed(body, ["a"] * 100, dedupe=True)

    assert len(positions) == body.rows == 20
    assert body.requests == 1


def test_a_body_is_filled_in_steps_of_about_a_megabyte() -> None:
    body, given = Packing(NONCE, 100, 10_000_000), requests(["x" * 300_000] * 9)

    steps = [len(body.fill(given, start, dedupe=False).positions) for start in (0, 4, 8)]

    assert steps == [4, 4, 1]
    assert body.requests == 9


def each(body: Packing, given: Requests, *, dedupe: bool) -> tuple[bytes, list[int]]:
    """Fill a body with one request at a time, which is never done in bulk. Return its lines and positions."""
    lines, positions = b"", list[int]()
    while (filled := body._fill_each(given, len(positions), dedupe=dedupe)).positions:
        lines += b"".join(filled.lines)
        positions += filled.positions
    return lines, positions


@settings(deadline=None)  # machines differ
@given(
    prompts=st.lists(st.sampled_from(["a", "b", "c" * 40]) | st.text(max_size=9), max_size=60),
    bounds=st.sampled_from([[None], [Bound(0.5, 0.25)], [Bound(0.5, 0.25), Bound(1.5, 0.25), None]]),
    limits=st.tuples(st.integers(1, 40), st.sampled_from([400, 2_000, 1_000_000])),
    step=st.integers(1, 3_000),
    dedupe=st.booleans(),
)
def test_a_body_filled_in_bulk_is_the_one_that_is_filled_one_by_one(
    prompts: list[str], bounds: list[Bound | None], limits: tuple[int, int], step: int, dedupe: bool
) -> None:
    given_requests = requests(prompts)._replace(bounds=[bounds[i // 9 % len(bounds)] for i in range(len(prompts))])
    in_bulk, one_by_one = Packing(NONCE, *limits), Packing(NONCE, *limits)
    lines, positions = b"", list[int]()

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(packing, "FILL_BYTES", step)
        while (filled := in_bulk.fill(given_requests, len(positions), dedupe=dedupe)).positions:
            lines += b"".join(filled.lines)
            positions += filled.positions
        expected = each(one_by_one, given_requests, dedupe=dedupe)

    assert (lines, positions) == expected
    assert in_bulk == one_by_one


def test_params_are_read_back_byte_for_byte() -> None:
    texts = ["one", "ä€😀", '","params":{"x":1}}', "line\nbreak", "ends with ,", "}"]
    written, _ = packed(Packing(NONCE, 10, 1_000_000), texts)

    lines = written.split(b"\n")[1:-1]

    assert [packing.params_of(line) for line in lines] == [params(text) for text in texts]
    assert [packing.params_of(line + b"\n") for line in lines] == [params(text) for text in texts]


def test_nonces_are_26_base32_characters_and_all_different() -> None:
    nonces = {packing.new_nonce() for _ in range(1000)}

    assert len(nonces) == 1000
    assert all(re.fullmatch(r"[a-z2-7]{26}", nonce) for nonce in nonces)


@pytest.mark.parametrize("n", [0, 9, 10, 99_999])
def test_a_custom_id_is_valid_for_the_api_and_contains_its_position(n: int) -> None:
    nonce = packing.new_nonce()

    identifier = packing.custom_id(nonce, n)

    assert re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", identifier)
    assert packing.position(nonce, identifier) == n


@pytest.mark.parametrize(
    "custom_id",
    [
        pytest.param("b" * 26 + "-0", id="another body's"),
        pytest.param(NONCE, id="no position"),
        pytest.param(f"{NONCE}-", id="an empty position"),
        pytest.param(f"{NONCE}-x", id="a letter"),
        pytest.param(f"{NONCE}--1", id="a negative position"),
        pytest.param(f"{NONCE}-01", id="a leading zero"),
        pytest.param(f"{NONCE}-1-2", id="two positions"),
        pytest.param(f"{NONCE}-1 ", id="a blank"),
        pytest.param(f"{NONCE}-٣", id="a digit of another script"),
        pytest.param(f"{NONCE}-²", id="a superscript"),
        pytest.param("", id="nothing"),
    ],
)
def test_a_malformed_or_foreign_custom_id_has_no_position(custom_id: str) -> None:
    assert packing.position(NONCE, custom_id) is None


@pytest.mark.parametrize(
    ("line", "custom_id"),
    [
        pytest.param(b'{"custom_id":"abc-7","result":{}}', "abc-7", id="as the API writes it"),
        pytest.param(b'{ "custom_id" : "abc-7" }', "abc-7", id="with blanks"),
        pytest.param(b'{"result":{"custom_id":"x"},"custom_id":"abc-7"}', "abc-7", id="not first"),
        pytest.param(b'{"custom_id":"a\\u0062c-7","result":{}}', "abc-7", id="with an escape"),
        pytest.param(b'{"custom_id":"' + b"x" * 64 + b'"}', "x" * 64, id="as long as one may be"),
        pytest.param(b'{"custom_id":"' + b"x" * 90 + b'"}', "x" * 90, id="longer than one may be"),
        pytest.param(b'{"custom_id":7}', None, id="a number"),
        pytest.param(b'{"result":{}}', None, id="none"),
        pytest.param(b'["custom_id"]', None, id="a list"),
        pytest.param(b'{"custom_id":"abc', None, id="cut off"),
        pytest.param(b"", None, id="nothing"),
        pytest.param(b"<html>", None, id="a page"),
    ],
)
def test_the_custom_id_is_read_from_a_result_line(line: bytes, custom_id: str | None) -> None:
    assert packing.custom_id_of_result(line) == custom_id


def test_the_nonce_of_a_result_line_names_its_body() -> None:
    assert packing.nonce_of(f"{NONCE}-17") == NONCE
    assert [packing.nonce_of(strange) for strange in (NONCE, f"{NONCE}-017", "row-17", "", "-1")] == [""] * 5


@pytest.mark.parametrize(
    ("line", "n"),
    [
        (b'{"custom_id":"NONCE-0","result":{}}', 0),
        (b'{"custom_id":"NONCE-12","result":{}}', 12),
        (b'{"result":{},"custom_id":"NONCE-12"}', 12),
        (b'{ "custom_id": "NONCE-12", "result": {}}', 12),
        (b'{"custom_id":"NONCE-012","result":{}}', None),
        (b'{"custom_id":"NONCE-","result":{}}', None),
        (b'{"custom_id":"NONCE-1x","result":{}}', None),
        (b'{"custom_id":"OTHER-1","result":{}}', None),
        (b'{"custom_id":"NONCE-1', None),
        (b"not JSON", None),
    ],
    ids=[
        "first",
        "two digits",
        "last field",
        "blanks",
        "a zero",
        "no number",
        "no digits",
        "another's",
        "cut",
        "no JSON",
    ],
)
def test_the_position_is_read_from_a_result_line_in_any_json_spelling(line: bytes, n: int | None) -> None:
    nonce = "n" * 26

    assert packing.position_of_results(nonce)(line.replace(b"NONCE", nonce.encode())) == n
