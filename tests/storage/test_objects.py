"""Object storage over HTTP, with moto's S3 server and injected faults."""

import contextlib
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import cast

import pytest

from pipeline.errors import InputError, Stopped
from pipeline.storage import objects
from tests.support.object_storage import S3


def test_an_object_is_found_read_listed_and_removed(s3: S3) -> None:
    url = s3.put("notes/über a+b.txt", b"0123456789")
    s3.put("notebook/other.txt", b"x")
    obj = objects.head(url)
    assert (obj.url, obj.size) == (url, 10)
    assert objects.read(obj) == b"0123456789"
    assert [o.url for o in objects.list_objects("s3://bucket/notes")] == [url]
    with objects.open_object(obj, buffered=4) as file:
        assert file.read(3) == b"012"
        file.seek(-2, 2)
        assert file.read() == b"89"
    objects.remove(url)
    objects.remove(url)
    with pytest.raises(objects.NotFound, match="does not exist"):
        objects.head(url)


def test_an_empty_object_is_read_without_a_request(s3: S3) -> None:
    obj = objects.head(s3.put("empty", b""))
    s3.requests.clear()
    assert objects.read(obj) == b""
    assert objects.open_object(obj).read() == b""
    assert s3.requests == []


def test_an_object_replaced_while_it_is_read_raises_replaced(s3: S3) -> None:
    obj = objects.head(s3.put("a", b"old old old old old"))
    with objects.open_object(obj, buffered=4) as file:
        assert file.read(4) == b"old "
        s3.put("a", b"new new new new new")
        with pytest.raises(objects.Replaced, match="s3://bucket/a was replaced while it was read"):
            file.read()


def test_an_object_uploaded_in_parts_is_visible_whole_or_not_at_all(s3: S3) -> None:
    objects.put("s3://bucket/whole", iter([b"a" * 6_000_000, b"b" * 6_000_000]))
    assert s3.get("whole") == b"a" * 6_000_000 + b"b" * 6_000_000

    def broken() -> Iterator[bytes]:
        yield b"a" * objects.PART_BYTES
        yield b"a" * objects.PART_BYTES
        raise OSError("the disk")

    with pytest.raises(OSError, match="the disk"):
        objects.put("s3://bucket/broken", broken())
    assert s3.keys() == ["whole"]
    assert "Uploads" not in s3.client.list_multipart_uploads(Bucket="bucket")


def test_the_second_of_two_creates_of_one_object_raises_already_exists(s3: S3) -> None:
    objects.put("s3://bucket/marker", b"mine", create=True)
    with pytest.raises(objects.AlreadyExists, match="s3://bucket/marker exists"):
        objects.put("s3://bucket/marker", b"yours", create=True)
    assert s3.get("marker") == b"mine"


@pytest.mark.parametrize("fault", ["503", "cut"])
def test_a_failed_request_to_a_store_is_retried(s3: S3, fault: str) -> None:
    obj = objects.head(s3.put("a", b"x" * 100_000))
    s3.faults += [fault, fault]
    assert objects.read(obj) == b"x" * 100_000
    assert s3.faults == []
    s3.faults += ["503"]
    objects.put("s3://bucket/b", b"y")
    assert s3.get("b") == b"y"


def test_a_response_that_breaks_off_is_requested_again(s3: S3) -> None:
    for n in range(3):
        s3.put(f"notes/{n}", b"x")
    s3.faults += ["cut"]
    with pytest.raises(objects.NotFound, match="does not exist"):
        objects.get("s3://bucket/nothing")
    s3.faults += ["cut"]
    assert [obj.url[-1] for obj in objects.list_objects("s3://bucket/notes")] == ["0", "1", "2"]
    s3.faults += ["cut"]
    objects.put("s3://bucket/whole", b"a" * 9_000_000)
    assert len(s3.get("whole")) == 9_000_000
    assert s3.faults == []


def test_an_answer_that_breaks_off_each_time_is_told_after_the_third(s3: S3, capfd: pytest.CaptureFixture[str]) -> None:
    obj = objects.head(s3.put("notes/a", b"x" * 100_000))
    s3.requests.clear()
    s3.faults += ["cut"] * 20

    with pytest.raises(objects.BrokenOff, match=r"s3://bucket/notes: the store cannot be reached .*safe to run again"):
        list(objects.list_objects("s3://bucket/notes"))

    assert capfd.readouterr() == ("", "")
    assert s3.requests == ["GET /bucket"] * 3
    s3.faults.clear()
    assert objects.read(obj) == b"x" * 100_000


def test_a_listing_need_not_be_read_to_its_end(s3: S3) -> None:
    for n in range(3):
        s3.put(f"notes/{n}", b"x")

    with contextlib.closing(cast("Generator[objects.Object]", objects.list_objects("s3://bucket/notes"))) as listing:
        first = next(listing)

    assert first.url == "s3://bucket/notes/0"
    assert list(listing) == []


def test_unfinished_uploads_below_one_folder_are_aborted(s3: S3) -> None:
    for key in ("notes/a", "notebook/b"):
        s3.client.create_multipart_upload(Bucket=s3.bucket, Key=key)
    objects.abandon_uploads("s3://bucket/notes")
    assert [upload["Key"] for upload in s3.client.list_multipart_uploads(Bucket=s3.bucket)["Uploads"]] == ["notebook/b"]


def test_a_missing_bucket_is_distinguished_from_a_missing_object(s3: S3) -> None:
    with pytest.raises(objects.BucketNotFound):
        objects.get("s3://buckett/x")
    with pytest.raises(InputError, match="no object can have this name"):
        objects.get("s3://bucket/a//b")


def test_an_object_is_downloaded_in_parts(s3: S3, tmp_path: Path) -> None:
    data = bytes(range(256)) * 40_000
    obj = objects.head(s3.put("a", data))
    with open(tmp_path / "a", "w+b") as file:
        objects.download(obj, file)
        file.seek(0)
        assert file.read() == data


def test_a_request_that_times_out_is_retried(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "REQUEST_SECONDS", 0.2)
    objects.forget_stores()
    obj = objects.head(s3.put("a", b"x" * 100_000))
    s3.faults += ["slow", "slow"]
    assert objects.read(obj) == b"x" * 100_000
    s3.faults += ["slow"]
    objects.put("s3://bucket/b", b"y")
    assert s3.get("b") == b"y"


def test_a_store_that_stays_down_is_reported_with_its_response(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "RETRY_SECONDS", 0.2)
    objects.forget_stores()
    s3.faults += ["503"] * 50
    with pytest.raises(Stopped, match=r"s3://bucket/a: the store cannot be reached .*503 .*safe to run again"):
        objects.head("s3://bucket/a")


def test_a_missing_bucket_is_named(s3: S3) -> None:
    for ask in (lambda: list(objects.list_objects("s3://buckett/x")), lambda: objects.put("s3://buckett/x", b"1")):
        with pytest.raises(
            objects.NotFound, match=r"there is no bucket s3://buckett; check its name, and AWS_ENDPOINT"
        ):
            ask()


def test_missing_or_wrong_credentials_are_reported_without_their_values(
    s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.faults += ["403"]
    with pytest.raises(objects.AccessDenied, match=r"refuses the credentials \(InvalidAccessKeyId\)") as refused:
        list(objects.list_objects("s3://bucket/x"))
    assert "set: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY" in str(refused.value)
    assert "secret)" not in str(refused.value)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    objects.forget_stores()
    with pytest.raises(objects.AccessDenied, match=r"no credentials; tried AWS_ACCESS_KEY_ID, .*set: none"):
        objects.head("s3://bucket/x")


def test_a_profile_of_the_sdk_gives_credentials_and_endpoint(
    s3: S3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    s3.put("a", b"1")
    config, credentials = tmp_path / "config", tmp_path / "credentials"
    config.write_text(f"[profile team]\nregion = eu-central-1\nendpoint_url = {s3.address}\n")
    credentials.write_text("[team]\naws_access_key_id = A\naws_secret_access_key = B\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "AWS_REGION"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_PROFILE", "team")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(credentials))
    objects.forget_stores()
    assert objects.head("s3://bucket/a").size == 1
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    objects.forget_stores()
    with pytest.raises(objects.AccessDenied, match=r"profile \(nobody\) could not be found"):
        objects.head("s3://bucket/a")


@pytest.mark.parametrize("url", ["s3://", "s3:///key"])
def test_an_address_without_a_bucket_is_refused(url: str) -> None:
    with pytest.raises(InputError, match="s3://BUCKET/NAME"):
        objects.head(url)


def test_missing_credentials_of_google_and_azure_name_the_variables_that_were_tried(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("GOOGLE_APPLICATION_CREDENTIALS", "STORAGE_EMULATOR_HOST", "AZURE_STORAGE_ACCOUNT_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    objects.forget_stores()
    with pytest.raises(objects.AccessDenied, match="tried GOOGLE_APPLICATION_CREDENTIALS"):
        objects.head("gs://bucket/x")
    with pytest.raises(objects.AccessDenied, match="no storage account is named; tried AZURE_STORAGE_ACCOUNT_NAME"):
        objects.head("az://container/x")


@pytest.mark.parametrize(
    ("url", "hidden", "said"),
    [
        (
            "s3://b/x",
            ["boto3"],
            "s3://b needs the library boto3, which is not installed: pip install 'batch-pipeline[s3]'",
        ),
        ("gs://b/x", ["google.auth"], "gs://b needs the library google.auth, which is not installed: pip install "),
        ("gs://b/x", ["requests"], "is not installed: pip install 'batch-pipeline[gs]'"),
        ("az://b/x", ["azure.identity"], "is not installed: pip install 'batch-pipeline[az]'"),
    ],
)
def test_a_library_that_is_not_installed_is_named_instead_of_the_credentials(
    monkeypatch: pytest.MonkeyPatch, url: str, hidden: list[str], said: str
) -> None:
    for name in [name for name in sys.modules if name.startswith("google.auth.transport")]:
        monkeypatch.delitem(sys.modules, name)
    for name in hidden:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    objects.forget_stores()

    with pytest.raises(objects.AccessDenied) as refused:
        objects.head(url)

    assert said in str(refused.value)
    assert "None" not in str(refused.value)
    assert "credentials" not in str(refused.value)
    objects.forget_stores()
