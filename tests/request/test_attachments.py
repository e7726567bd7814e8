"""A row's files become content blocks that the API takes, or the row is refused with the file and the reason."""

import contextlib
import hashlib
import os
import sqlite3
import stat as modes
import tempfile
from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import orjson
import polars as pl
import pytest
from PIL import Image
from pypdf import PdfWriter

from pipeline.errors import RowProblem
from pipeline.job.model import Attachment
from pipeline.request import attachments as of_request
from pipeline.request.attachments import Attachments, stamp, weight
from pipeline.request.media import Content, media_type
from pipeline.spool.local import LocalSpool
from pipeline.storage.folders import Folder, LocalFolder, ObjectFolder

SAMPLES = Path(__file__).parents[2] / "sample_data" / "attachments"


def picture(form: str = "PNG", size: tuple[int, int] = (4, 3)) -> bytes:
    """Return an image file of one colour."""
    out = BytesIO()
    Image.new("RGB", size, (200, 30, 30)).save(out, form)
    return out.getvalue()


def pdf(pages: int = 1, password: str | None = None) -> bytes:
    """Return a PDF of blank pages."""
    writer, out = PdfWriter(), BytesIO()
    for _ in range(pages):
        writer.add_blank_page(100, 100)
    if password is not None:
        writer.encrypt(password, algorithm="RC4-128")
    writer.write(out)
    return out.getvalue()


def images(*, nulls: Literal["invalid", "empty"] = "invalid", small_context: bool = False) -> Attachments:
    """Return the attachments of `attachments: [{image: photo}]`."""
    return Attachments([Attachment(image="photo")], nulls=nulls, small_context=small_context)


def documents(*, nulls: Literal["invalid", "empty"] = "invalid", small_context: bool = False) -> Attachments:
    """Return the attachments of `attachments: [{document: file}]`."""
    return Attachments([Attachment(document="file")], nulls=nulls, small_context=small_context)


def refusal(attachments: Attachments, value: Any, folder: Folder) -> str:
    """Return why a row with this value in its only attachment column is refused."""
    (column,) = attachments.columns
    with pytest.raises(RowProblem) as refused:
        attachments.blocks({column: value}, folder)
    return str(refused.value)


class CountingFolder:
    """A folder that counts how often each of its files is read."""

    def __init__(self, folder: LocalFolder) -> None:
        self._folder = folder
        self.reads = Counter[str]()

    def stat(self, path: str) -> tuple[int, int]:
        return self._folder.stat(path)

    def read(self, path: str) -> bytes:
        self.reads[path] += 1
        return self._folder.read(path)

    def prefetch(self, paths: Iterable[str]) -> None:
        self._folder.prefetch(paths)


@pytest.fixture
def folder(tmp_path: Path) -> LocalFolder:
    """Return a folder beside one that its paths may not reach."""
    inside, outside = tmp_path / "data", tmp_path / "private"
    (inside / "photos").mkdir(parents=True)
    outside.mkdir()
    (inside / "photos" / "red.png").write_bytes(picture())
    (inside / "lease.pdf").write_bytes(pdf(2))
    (inside / "terms.txt").write_text("Pay – or else.", encoding="utf-8")
    (outside / "secret.png").write_bytes(picture())
    return LocalFolder(inside)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "WEBP"])
def test_a_picture_is_embedded_with_the_media_type_of_its_content(form: str, folder: LocalFolder) -> None:
    (folder.path / "picture.bin").write_bytes(picture(form))

    (block,) = images().blocks({"photo": "picture.bin"}, folder)

    assert block == {
        "type": "image",
        "source": {
            "type": "base64",
            "media_type": f"image/{form.lower()}",
            "data": b64encode(picture(form)).decode(),
        },
    }


def test_a_wrong_file_extension_does_not_matter(folder: LocalFolder) -> None:
    (folder.path / "scan.jpg").write_bytes(picture("PNG"))

    (block,) = images().blocks({"photo": "scan.jpg"}, folder)

    assert block["source"]["media_type"] == "image/png"


def test_a_pdf_is_embedded_as_a_document(folder: LocalFolder) -> None:
    (block,) = documents().blocks({"file": "lease.pdf"}, folder)

    assert block["type"] == "document"
    assert block["source"]["media_type"] == "application/pdf"
    assert b64decode(block["source"]["data"]) == (folder.path / "lease.pdf").read_bytes()


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "with a byte order mark"])
def test_a_text_file_is_a_document_of_plain_text(mark: bytes, folder: LocalFolder) -> None:
    (folder.path / "terms.txt").write_bytes(mark + "Pay – or else.".encode())

    (block,) = documents().blocks({"file": "terms.txt"}, folder)

    source = {"type": "text", "media_type": "text/plain", "data": "Pay – or else."}
    assert block == {"type": "document", "source": source}


def test_a_document_carries_its_title_context_and_citations(folder: LocalFolder) -> None:
    declared = Attachment(document="file", title="The lease", context="Signed in 2026", citations=True)

    (block,) = Attachments([declared], nulls="invalid").blocks({"file": "lease.pdf"}, folder)

    assert {name: block[name] for name in ("title", "context", "citations")} == {
        "title": "The lease",
        "context": "Signed in 2026",
        "citations": {"enabled": True},
    }


@pytest.mark.parametrize(
    ("value", "source"),
    [
        pytest.param("https://a.example/b.png", {"type": "url", "url": "https://a.example/b.png"}, id="https"),
        pytest.param(
            "HTTP://a.example/b c", {"type": "url", "url": "HTTP://a.example/b c"}, id="http, as it is written"
        ),
        pytest.param("file_011CNha8iCJcU1", {"type": "file", "file_id": "file_011CNha8iCJcU1"}, id="a Files API id"),
    ],
)
def test_urls_and_file_ids_are_passed_on_unread(value: str, source: dict[str, str], folder: LocalFolder) -> None:
    assert images().blocks({"photo": value}, folder) == [{"type": "image", "source": source}]


def test_a_file_name_that_begins_like_an_id_is_a_path(folder: LocalFolder) -> None:
    (folder.path / "file_1.png").write_bytes(picture())

    (block,) = images().blocks({"photo": "file_1.png"}, folder)

    assert block["source"]["type"] == "base64"


@pytest.mark.parametrize(
    ("url", "scheme"),
    [
        pytest.param("file:///etc/passwd", "file", id="a local file"),
        pytest.param("ftp://user:secret@a.example/b.png", "ftp", id="ftp"),
        pytest.param("s3://bucket/b.png", "s3", id="a bucket"),
        pytest.param("data:image/png;base64,iVBORw0KGgo=", "data", id="data"),
    ],
)
def test_urls_of_other_schemes_are_refused(url: str, scheme: str, folder: LocalFolder) -> None:
    assert refusal(images(), url, folder) == (
        f"column 'photo': {scheme}: URLs are not accepted; "
        "give a path, an http(s) URL, a Files API id, bytes, or a list of these"
    )


@pytest.mark.parametrize(
    "several",
    [
        pytest.param(["photos/red.png", "file_a", picture()], id="a list"),
        pytest.param(pl.Series(["photos/red.png", "file_a"]), id="a series"),
        pytest.param('["photos/red.png", "file_a"]', id="a JSON array in a text"),
    ],
)
def test_each_of_several_values_becomes_a_block_in_order(several: Any, folder: LocalFolder) -> None:
    blocks = images().blocks({"photo": several}, folder)

    kinds = [block["source"]["type"] for block in blocks]
    assert kinds == ["base64", "file", "base64"][: len(kinds)]
    assert len(kinds) >= 2


def test_a_path_that_looks_like_a_list_is_a_path(folder: LocalFolder) -> None:
    (folder.path / "[draft] red.png").write_bytes(picture())

    assert len(images().blocks({"photo": "[draft] red.png"}, folder)) == 1


def test_bytes_are_embedded_as_an_attachment(folder: LocalFolder) -> None:
    (block,) = images().blocks({"photo": picture("WEBP")}, folder)

    assert block["source"]["media_type"] == "image/webp"


def test_blocks_have_the_order_of_the_job(folder: LocalFolder) -> None:
    declared = [Attachment(document="file"), Attachment(image="photo"), Attachment(document="file", title="Again")]
    attachments = Attachments(declared, nulls="invalid")

    blocks = attachments.blocks({"photo": "file_a", "file": ["file_b", "file_c"]}, folder)

    assert attachments.columns == ("file", "photo")
    assert [block["source"]["file_id"] for block in blocks] == ["file_b", "file_c", "file_a", "file_b", "file_c"]


NOTHING = [
    pytest.param(None, id="null"),
    pytest.param("", id="empty text"),
    pytest.param("  ", id="blanks"),
    pytest.param(b"", id="no bytes"),
    pytest.param([], id="an empty list"),
    pytest.param("[]", id="an empty JSON array"),
    pytest.param([None], id="a null in a list"),
]


@pytest.mark.parametrize("value", NOTHING)
def test_a_row_without_a_file_is_refused(value: Any, folder: LocalFolder) -> None:
    assert refusal(images(), value, folder) == (
        "column 'photo' holds no image (it is null or empty); set source.nulls: empty to send such rows without one"
    )


@pytest.mark.parametrize("value", NOTHING)
def test_a_row_without_a_file_has_no_block_when_nulls_are_empty(value: Any, folder: LocalFolder) -> None:
    assert images(nulls="empty").blocks({"photo": value}, folder) == []


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        pytest.param(17, "int", id="a number"),
        pytest.param({"path": "a"}, "dict", id="a struct"),
        pytest.param([["photos/red.png"]], "list", id="a list in a list"),
        pytest.param("[1]", "int", id="a JSON array of numbers"),
    ],
)
def test_a_value_of_another_type_is_refused(value: Any, kind: str, folder: LocalFolder) -> None:
    assert refusal(images(), value, folder) == (
        f"column 'photo': a value of type {kind} is not a path, an http(s) URL, a Files API id, bytes, "
        "or a list of these"
    )


def test_a_path_may_lead_anywhere_inside_the_folder(folder: LocalFolder) -> None:
    (folder.path / "link.png").symlink_to(folder.path / "photos" / "red.png")
    paths = ["photos/../photos/red.png", str(folder.path / "photos" / "red.png"), "link.png"]

    assert len(images().blocks({"photo": paths}, folder)) == 3


@pytest.mark.parametrize(
    "path",
    [
        pytest.param("../private/secret.png", id="the folder above"),
        pytest.param("photos/../../private/secret.png", id="up on the way"),
        pytest.param("/etc/passwd", id="an absolute path"),
        pytest.param("link.png", id="a symbolic link to a file"),
        pytest.param("linked/secret.png", id="a symbolic link to a folder"),
        pytest.param("../data2/a.png", id="a folder whose name begins alike"),
        pytest.param("../nowhere.png", id="outside, and missing"),
    ],
)
def test_a_path_may_not_leave_the_folder(path: str, folder: LocalFolder) -> None:
    (folder.path / "link.png").symlink_to("../private/secret.png")
    (folder.path / "linked").symlink_to("../private")

    said = refusal(images(), path, folder)

    assert said == f"column 'photo': {path!r} leads out of {folder.path}, the folder of the data file"


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(".env", id="a file"),
        pytest.param("photos/.env", id="a file in a folder"),
        pytest.param(".git/config", id="in a hidden folder"),
        pytest.param("photos/../.env", id="on a way round"),
        pytest.param("./.env", id="behind a dot that means this folder"),
        pytest.param("/.env", id="an absolute path"),
        pytest.param(".missing", id="missing"),
    ],
)
@pytest.mark.parametrize("where", ["here", "on object storage"])
def test_hidden_files_are_refused(request: pytest.FixtureRequest, path: str, where: str, folder: LocalFolder) -> None:
    names = (".env", "photos/.env", ".git/config")
    place: Folder = folder
    for name in names:
        (folder.path / name).parent.mkdir(exist_ok=True)
        (folder.path / name).write_text("KEY=secret")
    if where == "on object storage":
        s3 = request.getfixturevalue("s3")
        for name in names:
            s3.put(f"in/{name}", b"KEY=secret")
        place = ObjectFolder("s3://bucket/in")
    if path.startswith("/"):
        path = f"/in{path}" if place is not folder else str(folder.path) + path

    said = refusal(documents(), path, place)

    assert (
        said
        == f"column 'file': {path!r} is hidden: files whose names begin with a dot are not read; give it another name"
    )


def test_a_folder_may_itself_be_below_a_hidden_one(tmp_path: Path) -> None:
    (tmp_path / ".cache" / "data").mkdir(parents=True)
    (tmp_path / ".cache" / "data" / "a.png").write_bytes(picture())
    inside = LocalFolder(tmp_path / ".cache" / "data")

    assert images().blocks({"photo": "a.png"}, inside)
    assert images().blocks({"photo": str(tmp_path / ".cache" / "data" / "a.png")}, inside)


def test_a_link_may_lead_to_a_hidden_file(folder: LocalFolder) -> None:
    """git-annex and DVC store data this way."""
    (folder.path / ".annex").mkdir()
    (folder.path / ".annex" / "x.png").write_bytes(picture())
    (folder.path / "x.png").symlink_to(".annex/x.png")

    assert images().blocks({"photo": "x.png"}, folder)


def test_files_of_the_pipeline_beside_the_data_are_refused(folder: LocalFolder) -> None:
    (folder.path / "job.yaml").write_text(
        "name: t\nsource: {path: rows.csv, key: id}\nrequest:\n  model: m\n  prompt: x\nsink: {table: t}\n"
    )
    with contextlib.closing(sqlite3.connect(folder.path / "batches.db")) as conn:
        conn.execute("CREATE TABLE t (id)")
    bodies = LocalSpool.open(folder.path / "spool", "t")
    bodies.path("nonce").write_text('{"requests":[\n{"custom_id":"x"}\n]}')
    (folder.path / "copy.json").write_bytes(bodies.path("nonce").read_bytes())

    assert "'job.yaml' is a job file, not an attachment" in refusal(documents(), "job.yaml", folder)
    assert "'batches.db' is a database, not an attachment" in refusal(documents(), "batches.db", folder)
    assert "is in a spool of the pipeline" in refusal(documents(), "spool/t/nonce.json", folder)
    assert "'copy.json' is a request body of the pipeline's" in refusal(documents(), "copy.json", folder)


def test_other_yaml_and_json_files_are_accepted(folder: LocalFolder) -> None:
    (folder.path / "a.yaml").write_text("source: here\nrequest: that\nnested:\n  sink: there\n")
    (folder.path / "a.json").write_text('{"requests": []}')

    assert len(documents().blocks({"file": ["a.yaml", "a.json"]}, folder)) == 2


@pytest.mark.parametrize(
    ("path", "said"),
    [
        pytest.param("photos", "'photos' is a folder, not a file", id="a folder"),
        pytest.param(
            "blue.png", "'blue.png' does not exist; paths begin at the folder of the data file", id="a missing file"
        ),
        pytest.param("pipe", "'pipe' is not a regular file", id="a pipe, which would never end"),
        pytest.param("loop", "'loop' cannot be read: Too many levels of symbolic links", id="a loop of links"),
        pytest.param("a\x00b", "'a\\x00b' cannot be read: embedded null byte", id="a NUL"),
        pytest.param("x" * 5000, f"'{'x' * 200}…' cannot be read: File name too long", id="what is no path at all"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(path: str, said: str, folder: LocalFolder) -> None:
    os.mkfifo(folder.path / "pipe")
    (folder.path / "loop").symlink_to("loop")

    assert refusal(images(), path, folder) == f"column 'photo': {said}"


@contextlib.contextmanager
def somebody() -> Iterator[None]:
    """Run the block as a user other than root, because root may read everything."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


def test_a_file_without_permission_is_refused(folder: LocalFolder) -> None:
    with tempfile.TemporaryDirectory() as open_to_all:
        Path(open_to_all).chmod(0o755)
        photo = Path(open_to_all) / "red.png"
        photo.write_bytes((folder.path / "photos" / "red.png").read_bytes())
        photo.chmod(modes.S_IWUSR)
        with somebody():
            said = refusal(images(), "red.png", LocalFolder(Path(open_to_all)))

    assert said == "column 'photo': 'red.png' cannot be read: Permission denied"


def test_a_lone_surrogate_in_a_path_is_refused(folder: LocalFolder) -> None:
    assert "cannot be read" in refusal(images(), "a\ud800.png", folder)


OTHER_KIND = "column 'photo': the value is {}; attach it by `document`, not by `image`"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        pytest.param(b"Dear Sirs", OTHER_KIND.format("plain text (text/plain)"), id="a text"),
        pytest.param(pdf(), OTHER_KIND.format("a PDF (application/pdf)"), id="a PDF"),
        pytest.param(
            picture("BMP"),
            "column 'photo': the value is not a PNG, JPEG, GIF or WebP image, judged by its content, not its name; "
            "the API accepts no other image",
            id="a format that the API does not accept",
        ),
    ],
)
def test_a_file_that_is_not_an_image_is_refused_in_an_image_column(data: bytes, said: str, folder: LocalFolder) -> None:
    assert refusal(images(), data, folder) == said


@pytest.mark.parametrize(
    ("data", "said"),
    [
        pytest.param(
            picture("JPEG"), "is an image (image/jpeg); attach it by `image`, not by `document`", id="an image"
        ),
        pytest.param(
            b"PK\x03\x04\x00\x00",
            "is not a PDF or UTF-8 text, judged by its content, not its name; the API accepts no other document",
            id="a zip, which Office files are",
        ),
        pytest.param(
            "Grüße".encode("latin-1"),
            "is not a PDF or UTF-8 text, judged by its content, not its name; the API accepts no other document",
            id="a text in another encoding",
        ),
        pytest.param(b" \n", "is empty", id="a text of blanks"),
        pytest.param(
            pdf(password="swordfish"),
            "is an encrypted PDF, which the API does not accept; save it without a password",
            id="an encrypted PDF",
        ),
        pytest.param(b"%PDF-1.7 garbage", "cannot be read as a PDF: Stream has ended unexpectedly", id="a broken PDF"),
        pytest.param(pdf(0), "is a PDF without pages", id="a PDF without pages"),
    ],
)
def test_a_file_that_is_not_a_document_is_refused_in_a_document_column(
    data: bytes, said: str, folder: LocalFolder
) -> None:
    (folder.path / "doc.pdf").write_bytes(data)

    assert refusal(documents(), "doc.pdf", folder) == f"column 'file': 'doc.pdf' {said}"
    assert refusal(documents(), data, folder) == f"column 'file': the value {said}"


@pytest.mark.parametrize(
    ("form", "said"),
    [
        pytest.param("PNG", "Truncated File Read", id="PNG"),
        pytest.param("JPEG", "its end is missing", id="JPEG"),
        pytest.param("GIF", "its end is missing", id="GIF"),
        pytest.param("WEBP", "could not create decoder object", id="WebP"),
    ],
)
def test_a_picture_that_was_cut_off_is_refused(form: str, said: str, folder: LocalFolder) -> None:
    whole = picture(form, (40, 30))

    for left in (len(whole) - 20, 40):
        message = refusal(images(), whole[:left], folder)
        assert message.startswith(f"column 'photo': the value cannot be read as image/{form.lower()}: ")
    assert refusal(images(), whole[:-20], folder).endswith(f": {said}")


def test_a_jpeg_with_bytes_after_its_end_is_accepted(folder: LocalFolder) -> None:
    behind = picture("JPEG") + b"\xff\xda what a camera adds"

    assert len(images().blocks({"photo": behind}, folder)) == 1


def test_a_picture_with_too_many_pixels_is_refused(folder: LocalFolder) -> None:
    (folder.path / "wide.png").write_bytes(picture(size=(8001, 1)))

    said = refusal(images(), "wide.png", folder)

    assert said == "column 'photo': 'wide.png' is 8001 x 1 pixels; the API accepts at most 8000 x 8000"


def claiming(form: str, side: int) -> bytes:
    """Return a small picture whose header claims this height and width."""
    if form == "GIF":
        whole = bytearray(picture("GIF"))
        whole[6:10] = side.to_bytes(2, "little") * 2
        return bytes(whole)
    out = BytesIO()
    Image.new("RGB", (4, 3)).save(out, "WEBP", exif=b"Exif\x00\x00any")  # only with such extras it has a canvas
    whole = bytearray(out.getvalue())
    whole[24:30] = (side - 1).to_bytes(3, "little") * 2
    return bytes(whole)


@pytest.mark.parametrize(
    ("form", "side", "said"),
    [
        pytest.param("GIF", 9_500, "is 9500 x 9500 pixels; the API accepts at most 8000 x 8000", id="a large GIF"),
        pytest.param("GIF", 60_000, "is 60000 x 60000 pixels; the API accepts at most 8000 x 8000", id="a huge GIF"),
        pytest.param("WEBP", 16_000, "cannot be read as image/webp: Image size", id="a huge WebP"),
    ],
)
def test_a_picture_whose_header_claims_a_huge_size_is_refused(
    form: str, side: int, said: str, folder: LocalFolder
) -> None:
    assert refusal(images(), claiming(form, side), folder).startswith(f"column 'photo': the value {said}")


def test_pictures_must_be_smaller_in_a_request_with_more_than_20(folder: LocalFolder) -> None:
    (folder.path / "wide.png").write_bytes(picture(size=(2001, 1)))
    (folder.path / "fits.png").write_bytes(picture(size=(2000, 1)))

    assert len(images().blocks({"photo": ["wide.png"] * 20}, folder)) == 20
    assert len(images().blocks({"photo": ["fits.png"] * 21}, folder)) == 21
    assert refusal(images(), ["file_a"] * 20 + ["wide.png"], folder) == (
        "column 'photo': 'wide.png' is 2001 x 1 pixels; in a request with more than 20 images (this one has 21) "
        "the API accepts at most 2000 x 2000"
    )


def test_a_request_has_at_most_600_images_or_100_in_a_small_context(folder: LocalFolder) -> None:
    assert len(images().blocks({"photo": ["file_a"] * 600}, folder)) == 600
    assert len(images(small_context=True).blocks({"photo": ["file_a"] * 100}, folder)) == 100

    assert refusal(images(), ["photos/red.png"] * 601, folder) == (
        "the attachments are 601 images; the API accepts at most 600 in a request"
    )
    assert refusal(images(small_context=True), ["file_a"] * 101, folder) == (
        "the attachments are 101 images; the API accepts at most 100 in a request to a model with less than 1M tokens "
        "of context"
    )


def test_a_request_has_at_most_600_pages_or_100_in_a_small_context(folder: LocalFolder) -> None:
    (folder.path / "301.pdf").write_bytes(pdf(301))
    (folder.path / "101.pdf").write_bytes(pdf(101))

    assert len(documents().blocks({"file": ["301.pdf", "101.pdf", "terms.txt"]}, folder)) == 3
    assert refusal(documents(), ["301.pdf", "301.pdf"], folder) == (
        "the attachments are 602 PDF pages; the API accepts at most 600 in a request"
    )
    assert refusal(documents(small_context=True), "101.pdf", folder) == (
        "the attachments are 101 PDF pages; the API accepts at most 100 in a request to a model with less than "
        "1M tokens of context"
    )


def sparse(path: Path, size: int, begins: bytes = b"") -> None:
    """Write a file of this size that takes no space on the disk."""
    path.write_bytes(begins)
    os.truncate(path, size)


def test_an_image_has_at_most_10_megabytes_as_base64(folder: LocalFolder) -> None:
    most = 10 * 1024 * 1024 * 3 // 4
    sparse(folder.path / "fits.png", most, picture())
    sparse(folder.path / "large.png", most + 1, picture())

    assert len(images().blocks({"photo": "fits.png"}, folder)) == 1
    assert refusal(images(), "large.png", folder) == (
        "column 'photo': 'large.png' has 10,485,764 bytes as base64; the API accepts at most 10,485,760 of an image"
    )
    assert refusal(images(), bytes(most + 1), folder).startswith("column 'photo': the value has 10,485,764 bytes")


def test_a_document_larger_than_a_request_is_refused_without_reading_it(folder: LocalFolder) -> None:
    counting = CountingFolder(folder)
    sparse(folder.path / "large.pdf", 32_000_001)

    said = refusal(documents(), "large.pdf", counting)

    assert said == (
        "column 'file': 'large.pdf' has 32,000,001 bytes; the API accepts at most 32,000,000 in a request, "
        "unless the attachment has upload: true"
    )
    assert counting.reads == {}


@pytest.mark.parametrize(
    ("size", "said", "reads"),
    [
        pytest.param(6_300_000, "33,600,000 bytes in the request", 4, id="as base64"),
        pytest.param(7_800_000, "39,000,000 bytes", 0, id="even as they are, so that nothing is read"),
    ],
)
def test_a_whole_request_has_at_most_32_megabytes(size: int, said: str, reads: int, folder: LocalFolder) -> None:
    counting, names = CountingFolder(folder), [f"{i}.png" for i in range(4 if reads else 5)]
    for name in names:
        sparse(folder.path / name, size, picture())

    refused = refusal(images(), names, counting)

    assert refused == (
        f"the attachments have {said}, the largest is {names[-1]!r}; the API accepts at most 32,000,000 in a request, "
        "not counting those with upload: true"
    )
    assert counting.reads.total() == reads


def uploads(kept: list[Content]) -> Callable[[Content], str]:
    """Return an upload function that keeps each content and numbers it."""

    def uploaded(content: Content) -> str:
        kept.append(content)
        return f"file_{len(kept)}"

    return uploaded


def test_a_block_of_an_uploaded_file_names_the_file_id(folder: LocalFolder) -> None:
    kept: list[Content] = []
    declared = [Attachment(image="photo", upload=True), Attachment(document="file", upload=True, title="The lease")]
    attachments = Attachments(declared, nulls="invalid", uploaded=uploads(kept))

    blocks = attachments.blocks({"photo": picture("JPEG"), "file": "lease.pdf"}, folder)

    assert blocks == [
        {"type": "image", "source": {"type": "file", "file_id": "file_1"}},
        {"type": "document", "source": {"type": "file", "file_id": "file_2"}, "title": "The lease"},
    ]
    lease = (folder.path / "lease.pdf").read_bytes()
    assert kept == [
        Content(picture("JPEG"), "image/jpeg", "attachment.jpg", hashlib.sha256(picture("JPEG")).hexdigest()),
        Content(lease, "application/pdf", "lease.pdf", hashlib.sha256(lease).hexdigest()),
    ]


@pytest.mark.parametrize(
    ("path", "name"),
    [("photos/red.png", "red.png"), ('why "red"?.png', "why _red__.png"), ("é" * 100 + ".png", "é" * 100 + ".png")],
    ids=["without its folder", "without marks that the Files API refuses", "in any script"],
)
def test_an_upload_has_the_name_of_the_file(path: str, name: str, folder: LocalFolder) -> None:
    (folder.path / path).write_bytes(picture())
    kept: list[Content] = []

    declared = [Attachment(image="photo", upload=True)]
    Attachments(declared, nulls="invalid", uploaded=uploads(kept)).blocks({"photo": path}, folder)

    assert [content.name for content in kept] == [name]


def test_urls_and_ids_are_not_uploaded(folder: LocalFolder) -> None:
    attachments = Attachments([Attachment(image="photo", upload=True)], nulls="invalid", uploaded=uploads([]))

    blocks = attachments.blocks({"photo": ["https://a.example/b.png", "file_abc"]}, folder)

    assert [block["source"]["type"] for block in blocks] == ["url", "file"]
    assert blocks[1]["source"]["file_id"] == "file_abc"


def test_uploads_count_as_pixels_and_pages_but_not_as_bytes_of_the_request(folder: LocalFolder) -> None:
    for i in range(4):
        sparse(folder.path / f"{i}.png", 9_000_000, picture())
    (folder.path / "wide.png").write_bytes(picture(size=(2001, 1)))
    declared = [Attachment(image="photo", upload=True)]
    attachments = Attachments(declared, nulls="invalid", uploaded=uploads([]))

    assert len(attachments.blocks({"photo": [f"{i}.png" for i in range(4)]}, folder)) == 4
    assert "is 2001 x 1 pixels; in a request with more than 20" in refusal(attachments, ["wide.png"] * 21, folder)


def test_a_file_larger_than_the_files_api_takes_is_refused(folder: LocalFolder) -> None:
    sparse(folder.path / "large.pdf", 500_000_001)
    attachments = Attachments([Attachment(document="file", upload=True)], nulls="invalid", uploaded=uploads([]))

    assert refusal(attachments, "large.pdf", folder) == (
        "column 'file': 'large.pdf' has 500,000,001 bytes; the Files API accepts at most 500,000,000"
    )


def test_nothing_is_uploaded_for_a_row_that_is_refused(folder: LocalFolder) -> None:
    kept: list[Content] = []
    declared = [Attachment(image="photo", upload=True), Attachment(document="file")]
    attachments = Attachments(declared, nulls="invalid", uploaded=uploads(kept))

    with pytest.raises(RowProblem, match=r"column 'file': 'gone\.pdf' does not exist"):
        attachments.blocks({"photo": "photos/red.png", "file": "gone.pdf"}, folder)

    assert kept == []


@pytest.mark.parametrize("upload", [False, True], ids=["embedded", "uploaded"])
def test_a_file_shared_by_many_rows_is_read_once(upload: bool, folder: LocalFolder) -> None:
    counting, kept = CountingFolder(folder), list[Content]()
    declared = [Attachment(document="file", upload=upload)]
    attachments = Attachments(declared, nulls="invalid", uploaded=uploads(kept))

    made = [attachments.blocks({"file": "lease.pdf"}, counting) for _ in range(50)]

    assert len(made) == 50
    assert counting.reads == {"lease.pdf": 1}
    assert len({content.sha256 for content in kept}) == (1 if upload else 0)


def test_a_broken_file_shared_by_many_rows_is_read_once(folder: LocalFolder) -> None:
    counting = CountingFolder(folder)
    attachments = images()

    said = {refusal(attachments, "terms.txt", counting) for _ in range(50)}

    assert len(said) == 1
    assert counting.reads == {"terms.txt": 1}


def test_a_file_that_changed_is_read_again(folder: LocalFolder) -> None:
    attachments, file = images(), folder.path / "photos" / "red.png"
    before = attachments.blocks({"photo": "photos/red.png"}, folder)

    file.write_bytes(picture("JPEG"))
    after = attachments.blocks({"photo": "photos/red.png"}, folder)

    assert [block["source"]["media_type"] for block in before + after] == ["image/png", "image/jpeg"]


def test_a_file_larger_than_the_memory_for_files_is_read_for_each_row(
    folder: LocalFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(of_request, "CACHE_BYTES", 100)
    counting, attachments = CountingFolder(folder), images()

    made = [attachments.blocks({"photo": "photos/red.png"}, counting) for _ in range(3)]

    assert made[0] == made[1] == made[2]
    assert counting.reads == {"photos/red.png": 3}


def test_the_memory_for_files_is_bounded(folder: LocalFolder) -> None:
    counting, attachments = CountingFolder(folder), images()
    names = [f"{i}.png" for i in range(8)]
    for name in names:
        sparse(folder.path / name, 7_500_000, picture())

    for name in [*names, names[-1], names[0]]:
        attachments.blocks({"photo": name}, counting)

    assert counting.reads[names[-1]] == 1
    assert counting.reads[names[0]] == 2


@pytest.mark.parametrize(
    ("value", "said"),
    [
        pytest.param(None, "null", id="null"),
        pytest.param([], "null", id="an empty list"),
        pytest.param("photos/red.png", "photos/red.png|{size}|1700000000000000000", id="a path"),
        pytest.param("blue.png", "blue.png|missing", id="a missing file"),
        pytest.param("../private/secret.png", "../private/secret.png|missing", id="a path out of the folder"),
        pytest.param("https://a.example/b.png", "https://a.example/b.png", id="a URL"),
        pytest.param("s3://bucket/b.png", "s3://bucket/b.png", id="a URL that will be refused"),
        pytest.param("file_abc", "file_abc", id="a Files API id"),
        pytest.param(b"abc", f"sha256:{hashlib.sha256(b'abc').hexdigest()}", id="bytes"),
        pytest.param(["file_a", None, "file_b"], '["file_a","null","file_b"]', id="a list"),
        pytest.param('["file_a"]', "file_a", id="a JSON array of one, which makes the same block"),
    ],
)
def test_the_stamp_of_a_value_identifies_its_attachment(value: Any, said: str, folder: LocalFolder) -> None:
    file = folder.path / "photos" / "red.png"
    os.utime(file, ns=(0, 1_700_000_000_000_000_000))

    assert stamp(value, folder) == said.replace("{size}", str(file.stat().st_size))


def test_a_stamp_changes_when_the_file_is_touched_and_reads_nothing(folder: LocalFolder) -> None:
    counting, attachments = CountingFolder(folder), images()
    row = {"photo": ["photos/red.png", "file_a"]}
    before = attachments.stamp(row, counting)

    os.utime(folder.path / "photos" / "red.png", ns=(0, 1))

    assert attachments.stamp(row, counting) != before
    assert attachments.stamp(row, counting) == attachments.stamp(row, counting)
    assert counting.reads == {}


def test_a_rows_stamp_tells_its_columns_apart(folder: LocalFolder) -> None:
    attachments = Attachments([Attachment(image="a"), Attachment(image="b")], nulls="empty")

    stamps = {attachments.stamp(row, folder) for row in ({"a": "file_x", "b": None}, {"a": None, "b": "file_x"})}

    assert stamps == {'{"a":"file_x","b":"null"}', '{"a":"null","b":"file_x"}'}


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(17, id="a number"),
        pytest.param(float("nan"), id="not a number"),
        pytest.param({"a": [1]}, id="a struct"),
        pytest.param([[["a"]]], id="lists in lists"),
        pytest.param("a\x00b", id="a NUL"),
        pytest.param("a\ud800", id="half a character"),
        pytest.param("x" * 100_000, id="a very long text"),
        pytest.param("[" * 5000, id="what looks like JSON"),
        pytest.param("data:,x", id="a scheme that is refused"),
        pytest.param(pl.Series([b"a", None]), id="a series with a null"),
    ],
)
def test_stamp_and_weight_accept_any_value(value: Any, folder: LocalFolder) -> None:
    stamp(value, folder).encode()

    assert weight(value, folder) in {0, 4}
    assert orjson.loads(images().stamp({"photo": value}, folder)).keys() == {"photo"}


def test_the_weight_is_the_size_that_the_file_adds_to_the_request(folder: LocalFolder) -> None:
    row = {"photo": ["photos/red.png", picture(), "https://a.example/b.png", "file_a"], "file": "lease.pdf"}
    attachments = Attachments([Attachment(image="photo"), Attachment(document="file")], nulls="invalid")

    carried = sum(len(block["source"].get("data", "")) for block in attachments.blocks(row, folder))

    assert attachments.weight(row, folder) == carried


def test_unreadable_and_uploaded_files_have_no_weight(folder: LocalFolder) -> None:
    uploading = Attachments([Attachment(document="file", upload=True)], nulls="invalid", uploaded=uploads([]))

    assert uploading.weight({"file": "lease.pdf"}, folder) == 0
    assert weight(["gone.pdf", "../private/secret.png", "photos", None], folder) == 0


def test_every_sample_row_has_attachments_that_the_api_accepts() -> None:
    folder = LocalFolder(SAMPLES)
    parcels = pl.read_csv(SAMPLES / "parcels.csv").to_dicts()
    contracts = pl.read_parquet(SAMPLES / "contracts.parquet").to_dicts()
    files = Attachments([Attachment(document="files")], nulls="invalid")

    photos = [images(small_context=True).blocks({"photo": parcel["photo"]}, folder) for parcel in parcels]
    documents = [files.blocks({"files": contract["files"]}, folder) for contract in contracts]

    assert [len(blocks) for blocks in photos] == [1] * 8
    assert sorted({block["source"]["media_type"].removeprefix("image/") for (block,) in photos}) == [
        "gif",
        "jpeg",
        "png",
        "webp",
    ]
    assert sorted(len(blocks) for blocks in documents) == [1, 1, 1, 1, 2, 2]
    assert media_type((SAMPLES / "photos" / "fp-20421.jpg").read_bytes()) == "image/png"
    assert sum(file.stat().st_size for file in SAMPLES.rglob("*") if file.is_file()) < 200_000
