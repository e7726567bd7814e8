"""The Files API: uploads are kept, found by their workspace, and expire by the emulator's clock."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import pytest

from pipeline.emulator import Emulator, Settings, start
from tests.emulator.builders import client_of, http_of

HOUR = 3600


def upload(client: anthropic.Anthropic, name: str = "a.pdf", content: bytes = b"%PDF-1", **fields: Any) -> Any:
    return client.files.upload(file=(name, content, "application/pdf"), **fields)


def refused(response: httpx2.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["message"]


def test_an_upload_is_answered_with_its_metadata(client: anthropic.Anthropic) -> None:
    file = upload(client, "report.pdf", b"%PDF-1.7")

    assert file.id.startswith("file_")
    assert (file.type, file.filename, file.mime_type, file.size_bytes) == ("file", "report.pdf", "application/pdf", 8)
    assert (file.downloadable, file.expires_at) == (False, None)
    assert client.files.retrieve_metadata(file.id) == file


@pytest.mark.parametrize(
    ("file", "name", "media_type"),
    [
        pytest.param(("photo.png", b"x"), "photo.png", "image/png", id="type guessed by the client"),
        pytest.param(("a.txt", b"x", "text/plain; charset=utf-8"), "a.txt", "text/plain", id="type with a parameter"),
        pytest.param(("../up/été.txt", b"x", "text/plain"), "été.txt", "text/plain", id="last component"),
        pytest.param((None, b"x", "application/pdf"), "unnamed.pdf", "application/pdf", id="no name"),
        pytest.param(b"x", "unnamed.bin", "application/octet-stream", id="bare bytes"),
    ],
)
def test_an_upload_keeps_its_declared_name_and_media_type(
    client: anthropic.Anthropic, file: Any, name: str, media_type: str
) -> None:
    stored = client.files.upload(file=file)

    assert (stored.filename, stored.mime_type) == (name, media_type)


def test_the_bytes_of_an_upload_are_stored_unchanged(tmp_path: Path) -> None:
    content = b"--x\r\n\r\n\r\n--\n\r" + bytes(range(256)) * 5000

    with Emulator(tmp_path / "data", settings=Settings(files_downloadable=True)) as emulator:
        client = client_of(emulator)
        file = upload(client, content=content)
        empty = upload(client, content=b"")
        downloaded = client.files.download(file.id)
        nothing = client.files.download(empty.id).read()

    assert file.size_bytes == len(content)
    assert downloaded.read() == content
    assert downloaded.headers["content-type"] == "application/pdf"
    assert (empty.size_bytes, nothing) == (0, b"")


def test_a_path_is_uploaded_and_downloaded_over_a_socket(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("The ship sank.")

    with (
        start(tmp_path / "data", settings=Settings(files_downloadable=True)) as running,
        anthropic.Anthropic(base_url=running.url, api_key="emulated", max_retries=0) as client,
    ):
        file = client.files.upload(file=path)
        content = client.files.download(file.id).read()

    assert (file.filename, file.mime_type, file.size_bytes) == ("notes.txt", "text/plain", 14)
    assert content == b"The ship sank."


def test_files_survive_a_restart_and_leftovers_of_a_crash_are_removed(tmp_path: Path) -> None:
    with Emulator(tmp_path) as emulator:
        file = upload(client_of(emulator))
    (tmp_path / "files" / "file_torn").write_bytes(b"half")

    with Emulator(tmp_path) as emulator:
        found = list(client_of(emulator).files.list())

    assert found == [file]
    assert [path.name for path in (tmp_path / "files").iterdir()] == [file.id]


def test_a_deleted_file_is_not_found_and_its_bytes_are_removed(emulator: Emulator, client: anthropic.Anthropic) -> None:
    file = upload(client)

    deleted = client.files.delete(file.id)

    assert (deleted.id, deleted.type) == (file.id, "file_deleted")
    assert list((emulator.data / "files").iterdir()) == []
    for call in (client.files.retrieve_metadata, client.files.delete, client.files.download):
        with pytest.raises(anthropic.NotFoundError, match=f"File not found: {file.id}"):
            call(file.id)


def test_an_upload_cannot_be_downloaded(client: anthropic.Anthropic) -> None:
    file = upload(client)

    with pytest.raises(anthropic.BadRequestError) as caught:
        client.files.download(file.id)

    assert isinstance(caught.value.body, dict)
    assert caught.value.body["error"]["details"] == {"error_code": "file_not_downloadable"}


def test_a_file_expires_by_the_emulators_clock(emulator: Emulator, client: anthropic.Anthropic) -> None:
    file = upload(client, expires_in_seconds=HOUR)
    emulator.clock.advance(HOUR)

    with pytest.raises(anthropic.NotFoundError) as caught:
        client.files.download(file.id)

    assert file.expires_at - file.created_at == timedelta(hours=1)
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["error"]["details"] == {"error_code": "file_expired"}
    assert client.files.retrieve_metadata(file.id).expires_at == file.expires_at


@pytest.mark.parametrize("seconds", [3599, 7_776_001, "soon"])
def test_a_lifetime_out_of_range_is_refused(client: anthropic.Anthropic, seconds: Any) -> None:
    with pytest.raises(anthropic.BadRequestError, match="expires_in_seconds: Input should be"):
        upload(client, expires_in_seconds=seconds)

    assert list(client.files.list()) == []


def test_a_file_above_the_limit_is_refused(tmp_path: Path) -> None:
    with Emulator(tmp_path, settings=Settings(max_file_bytes=10)) as emulator:
        client = client_of(emulator)
        upload(client, content=b"x" * 10)
        with pytest.raises(anthropic.APIStatusError, match="File exceeds the maximum size: 11 bytes > 10") as caught:
            upload(client, content=b"x" * 11)

    assert caught.value.status_code == 413


@pytest.mark.parametrize(
    ("content_type", "body", "message"),
    [
        ("application/json", b"{}", "must be multipart/form-data"),
        ("multipart/form-data", b"--b--", "must be multipart/form-data"),
        ("multipart/form-data; boundary=b", b"", "could not be parsed"),
        ("multipart/form-data; boundary=b", b"--b\r\nContent-Disposition: form-data", "could not be parsed"),
        ("multipart/form-data; boundary=b", b"--b\r\n\r\nx\r\n--b--", "could not be parsed"),
        ("multipart/form-data; boundary=b", b"--b--\r\n", "file: Field required"),
    ],
    ids=["JSON", "no boundary", "nothing", "cut off", "no name", "no file"],
)
def test_a_body_that_is_not_an_upload_is_refused(
    emulator: Emulator, content_type: str, body: bytes, message: str
) -> None:
    response = http_of(emulator, **{"content-type": content_type}).post("/v1/files", content=body)

    assert response.status_code == 400
    assert message in response.json()["error"]["message"]


def test_a_listing_pages_through_all_files_newest_first(client: anthropic.Anthropic) -> None:
    files = [upload(client, f"{number}.pdf") for number in range(5)]

    page = client.files.list(limit=2)

    assert [file.filename for file in page.data] == ["4.pdf", "3.pdf"]
    assert (page.next_page or "").startswith("page_")
    assert list(page) == files[::-1]
    assert client.files.list(limit=5).next_page is None


def test_a_listing_by_ids_leaves_out_unknown_ids(client: anthropic.Anthropic) -> None:
    first, second, _ = (upload(client) for _ in range(3))

    page = client.files.list(ids=[first.id, "file_none", second.id, first.id])

    assert [file.id for file in page.data] == [second.id, first.id]
    assert page.next_page is None


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"ids[]": "file_a", "limit": "2"}, "ids: may not be combined with page or limit"),
        ({"ids[]": [f"file_{n}" for n in range(101)]}, "ids: List should have at most 100 items"),
        ({"page": "x"}, "page: not a cursor of this listing"),
        ({"limit": "0"}, "limit: Input should be greater than or equal to 1"),
    ],
    ids=["ids and limit", "many ids", "page", "limit"],
)
def test_a_listing_with_wrong_parameters_is_refused(emulator: Emulator, query: Any, message: str) -> None:
    response = http_of(emulator).get("/v1/files", params=query)

    status, said = refused(response)
    assert status == 400
    assert said.startswith(message)


def test_workspaces_do_not_see_each_others_files(emulator: Emulator, client: anthropic.Anthropic) -> None:
    file = upload(client)
    other = client_of(emulator, api_key="sk-test@team-b")

    assert list(other.files.list()) == []
    assert other.files.list(ids=[file.id]).data == []
    with pytest.raises(anthropic.NotFoundError):
        other.files.delete(file.id)


def test_an_upload_is_kept_if_its_answer_is_lost_and_not_if_its_call_is_lost(
    emulator: Emulator, client: anthropic.Anthropic
) -> None:
    emulator.add_fault(on="files_create", do="drop_before", match="early.pdf")
    emulator.add_fault(on="files_create", do="drop_after", match="late.pdf")

    for name in ("early.pdf", "late.pdf"):
        with pytest.raises(anthropic.APIConnectionError):
            upload(client, name)

    assert [file.filename for file in client.files.list()] == ["late.pdf"]


@pytest.mark.parametrize(
    ("operation", "method", "path"),
    [
        ("files_create", "POST", "/v1/files"),
        ("files_list", "GET", "/v1/files"),
        ("files_retrieve", "GET", "/v1/files/file_a"),
        ("files_delete", "DELETE", "/v1/files/file_a"),
        ("files_content", "GET", "/v1/files/file_a/content"),
    ],
)
def test_each_operation_on_files_can_fail_by_a_fault(
    emulator: Emulator, operation: str, method: str, path: str
) -> None:
    emulator.add_fault(on=operation, do="status", status=529, times=1)

    response = http_of(emulator).request(method, path)

    assert refused(response) == (529, "Overloaded")
