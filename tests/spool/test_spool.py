"""A body is complete or absent, never altered, private, and sent to the API whole or provably not at all."""

import hashlib
import os
import stat
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anthropic
import httpx2
import orjson
import pytest
from anthropic.types.messages import MessageBatch

from pipeline.emulator import Emulator
from pipeline.errors import DatabaseError
from pipeline.request import packing
from pipeline.request.packing import Packing
from pipeline.spool.body import BodyReader, BodyWriter, HeldBack, digest, params_at
from pipeline.spool.local import LocalSpool
from tests.support.bodies import one_request

MEGABYTE = 1 << 20


@pytest.fixture
def spool(tmp_path: Path) -> LocalSpool:
    return LocalSpool.open(tmp_path / "spool", "tickets")


def params(text: str) -> bytes:
    message = {"role": "user", "content": text}
    return orjson.dumps({"model": "claude-haiku-4-5", "max_tokens": 10, "messages": [message]})


def filled(spool: LocalSpool, texts: list[str], *, finish: bool = True) -> BodyWriter:
    """A body of these texts, one request each."""
    body = BodyWriter(spool, Packing(packing.new_nonce(), 100_000, 256_000_000))
    for row, text in enumerate(texts):
        assert body.fill(one_request(params(text)), dedupe=False) == [row]
    if finish:
        body.finish()
    return body


def path_of(spool: LocalSpool, body: BodyWriter) -> Path:
    return spool.path(body.contents.nonce)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def always() -> None:
    """A driver that may finish."""


def never() -> str:
    return "the lease is gone"


# -- writing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "texts",
    [
        pytest.param(["one"], id="one request"),
        pytest.param(["ä€😀", "b\n"], id="multibyte"),
        pytest.param([str(n) for n in range(1000)], id="1000 requests"),
        pytest.param(["x" * 700_000] * 4, id="several megabytes"),
    ],
)
def test_a_finished_body_has_the_size_and_digest_that_were_counted(spool: LocalSpool, texts: list[str]) -> None:
    body = filled(spool, texts)

    written = path_of(spool, body).read_bytes()

    assert len(written) == body.contents.size
    assert hashlib.sha256(written).hexdigest() == body.digest == digest(path_of(spool, body))
    sent = orjson.loads(written)["requests"]
    assert [request["params"]["messages"][0]["content"] for request in sent] == texts


def test_a_body_has_its_name_only_when_it_is_whole(spool: LocalSpool) -> None:
    body = filled(spool, ["x" * 700_000] * 4, finish=False)

    assert not path_of(spool, body).exists()
    assert [file.suffix for file in spool.folder.iterdir()] == [".tmp"]

    body.finish()

    assert list(spool.folder.iterdir()) == [path_of(spool, body)]


def test_a_discarded_body_leaves_nothing(spool: LocalSpool) -> None:
    filled(spool, ["x" * 700_000] * 4, finish=False).discard()
    filled(spool, ["x"]).discard()

    assert list(spool.folder.iterdir()) == []


def test_a_request_that_does_not_fit_is_not_in_the_body(spool: LocalSpool) -> None:
    body = BodyWriter(spool, Packing(packing.new_nonce(), 2, 1_000_000))

    taken = [body.fill(one_request(params(str(row))), dedupe=False) for row in range(3)]
    body.finish()

    assert taken == [[0], [1], []]
    assert len(orjson.loads(path_of(spool, body).read_bytes())["requests"]) == 2


def test_only_its_owner_can_read_a_spool(spool: LocalSpool) -> None:
    body = filled(spool, ["one"])

    assert mode(spool.folder) == mode(spool.folder.parent) == 0o700
    assert mode(path_of(spool, body)) == 0o600


def test_incomplete_bodies_of_a_dead_driver_are_removed_and_complete_ones_stay(spool: LocalSpool) -> None:
    whole = filled(spool, ["one"])
    (spool.folder / "half.tmp").write_bytes(packing.PREFIX)

    spool.remove_unfinished()

    assert list(spool.folder.iterdir()) == [path_of(spool, whole)]


def test_a_removed_body_is_gone_and_removing_it_again_is_no_error(spool: LocalSpool) -> None:
    body = filled(spool, ["one"])

    spool.remove(body.contents.nonce)
    spool.remove(body.contents.nonce)

    assert digest(path_of(spool, body)) is None


def test_two_jobs_have_folders_of_their_own_and_opening_again_is_no_error(tmp_path: Path) -> None:
    one, other = LocalSpool.open(tmp_path / "spool", "one"), LocalSpool.open(tmp_path / "spool", "other")

    assert one.folder != other.folder
    assert LocalSpool.open(tmp_path / "spool", "one") == one


def test_a_spool_that_cannot_be_used_is_named_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")

    with pytest.raises(DatabaseError, match=r"spool .*file.* cannot be used: .*; give another folder by --spool"):
        LocalSpool.open(tmp_path / "file", "tickets")


def test_a_changed_body_has_another_digest(spool: LocalSpool) -> None:
    body = filled(spool, ["one"])

    with path_of(spool, body).open("ab") as file:
        file.write(b" ")

    assert digest(path_of(spool, body)) != body.digest


@pytest.mark.parametrize("wanted", [[0], [2], [4], [0, 4], [1, 2, 3], [0, 1, 2, 3, 4], []], ids=str)
def test_the_params_of_chosen_requests_are_read_back_as_they_were_sent(spool: LocalSpool, wanted: list[int]) -> None:
    texts = ["zero", "ä\n", '","params":{', "three,", "\u2028four}"]
    body = filled(spool, texts)

    assert list(params_at(path_of(spool, body), wanted)) == [params(texts[n]) for n in wanted]


# -- reading ---------------------------------------------------------------------------------------------------------


def read_all(reader: BodyReader, size: int) -> bytes:
    return b"".join(iter(lambda: reader.read(size), b""))


@pytest.mark.parametrize("size", [1, 7, 4096, 65_536, MEGABYTE], ids=str)
def test_a_released_body_is_read_whole(spool: LocalSpool, size: int) -> None:
    body = filled(spool, ["The ship sank. " * 50] * 3)

    with BodyReader(path_of(spool, body), always) as reader:
        handed_out = read_all(reader, size)

    assert handed_out == path_of(spool, body).read_bytes()
    assert reader.released


@pytest.mark.parametrize("size", [1, 7, 4096], ids=str)
def test_a_body_that_is_held_back_keeps_its_last_bytes(spool: LocalSpool, size: int) -> None:
    body = filled(spool, ["The ship sank. " * 500])
    whole = path_of(spool, body).read_bytes()
    handed_out: list[bytes] = []

    with BodyReader(path_of(spool, body), never) as reader, pytest.raises(HeldBack, match="the lease is gone"):
        handed_out.extend(iter(lambda: reader.read(size), b""))

    assert whole.startswith(b"".join(handed_out))
    assert 0 < len(b"".join(handed_out)) < len(whole)
    assert not reader.released


@pytest.mark.parametrize("size", [-1, None, 10**9], ids=str)
def test_a_body_read_at_once_is_held_back_at_once(spool: LocalSpool, size: int | None) -> None:
    body = filled(spool, ["one"])

    with BodyReader(path_of(spool, body), never) as reader, pytest.raises(HeldBack):
        reader.read(size)

    assert not reader.released


def test_may_finish_is_called_once_and_only_before_the_last_bytes(spool: LocalSpool) -> None:
    body = filled(spool, ["x" * 1000])
    left_when_asked: list[int] = []

    with BodyReader(path_of(spool, body), lambda: left_when_asked.append(reader.tell())) as reader:
        whole = read_all(reader, 100)

    last = len(whole) % 100 or 100
    assert left_when_asked == [len(whole) - last]


def test_a_body_that_became_shorter_is_not_sent(spool: LocalSpool) -> None:
    body = filled(spool, ["x" * 1000])

    with BodyReader(path_of(spool, body), always) as reader:
        os.truncate(path_of(spool, body), 500)
        with pytest.raises((HeldBack, OSError)):
            read_all(reader, 100)


def test_a_reader_knows_the_size_as_a_file_does(spool: LocalSpool) -> None:
    body = filled(spool, ["ä" * 1000])

    with BodyReader(path_of(spool, body), always) as reader:
        size = reader.seek(0, 2)

    assert size == body.contents.size == path_of(spool, body).stat().st_size


# -- through the real SDK --------------------------------------------------------------------------------------------


class Seen(httpx2.BaseTransport):
    """Passes requests on, and notes what headers they had."""

    def __init__(self, inner: httpx2.BaseTransport) -> None:
        self.inner = inner
        self.headers: list[httpx2.Headers] = []

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        self.headers.append(request.headers)
        return self.inner.handle_request(request)


@pytest.fixture
def emulator(tmp_path: Path) -> Iterator[Emulator]:
    with Emulator(tmp_path / "emulator") as emulator:
        yield emulator


@pytest.fixture
def seen(emulator: Emulator) -> Seen:
    return Seen(emulator.transport())


@pytest.fixture
def post(seen: Seen) -> Callable[[BodyReader], MessageBatch]:
    """The POST as the pipeline does it: the reader is the content, the SDK does the rest."""
    client = anthropic.Anthropic(
        api_key="emulated", base_url="http://emulator.test", max_retries=0, http_client=httpx2.Client(transport=seen)
    )

    def send(reader: BodyReader) -> MessageBatch:
        return client.post(
            "/v1/messages/batches",
            content=reader,
            cast_to=MessageBatch,
            options={"headers": {"content-type": "application/json"}},
        )

    return send


@pytest.mark.parametrize(
    "texts",
    [["one"], ["ä€😀"] * 11, ["x" * 100_000] * 30],
    ids=["one small request", "multibyte", "three megabytes"],
)
def test_the_sdk_sends_a_body_whole_with_its_content_length(
    spool: LocalSpool, emulator: Emulator, seen: Seen, post: Callable[[BodyReader], MessageBatch], texts: list[str]
) -> None:
    body = filled(spool, texts)

    with BodyReader(path_of(spool, body), always) as reader:
        batch = post(reader)

    nonce = body.contents.nonce
    accepted = list(emulator.accepted())
    assert [entry["custom_id"] for entry in accepted] == [f"{nonce}-{n}" for n in range(len(texts))]
    assert {entry["batch_id"] for entry in accepted} == {batch.id}
    assert seen.headers[0]["content-length"] == str(body.contents.size)
    assert "transfer-encoding" not in seen.headers[0]
    assert reader.released


@pytest.mark.parametrize("texts", [["one"], ["x" * 100_000] * 30], ids=["one small request", "three megabytes"])
def test_a_body_held_back_is_not_accepted(
    spool: LocalSpool, emulator: Emulator, post: Callable[[BodyReader], MessageBatch], texts: list[str]
) -> None:
    body = filled(spool, texts)

    with BodyReader(path_of(spool, body), never) as reader, pytest.raises((HeldBack, anthropic.APIConnectionError)):
        post(reader)

    assert not reader.released
    assert list(emulator.accepted()) == []


def test_a_body_held_back_can_be_sent_later(
    spool: LocalSpool, emulator: Emulator, post: Callable[[BodyReader], MessageBatch]
) -> None:
    body = filled(spool, ["one", "two"])
    with BodyReader(path_of(spool, body), never) as reader, pytest.raises((HeldBack, anthropic.APIConnectionError)):
        post(reader)

    with BodyReader(path_of(spool, body), always) as reader:
        post(reader)

    assert len(list(emulator.accepted())) == 2


def test_a_body_written_before_the_clock_was_set_back_may_be_a_day_old(spool: LocalSpool) -> None:
    now = datetime.now(UTC)
    body = filled(spool, ["one"])
    ahead = time.time() + 3600
    os.utime(path_of(spool, body), (ahead, ahead))

    [stored] = spool.bodies(now).values()

    assert stored.written_at == now - timedelta(days=1)
