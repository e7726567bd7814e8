"""Digests of a file's bytes, also ahead of time."""

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.storage import digests

OLD = (0, 1_000_000_000)  # when a file was read and written, in nanoseconds


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "rows.csv"
    path.write_bytes(os.urandom(10_000))
    os.utime(path, ns=OLD)
    return path


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the list that gets the path of each file that is read."""
    found: list[str] = []
    of_blocks = digests._block_digests

    def counted(path: str, size: int) -> bytes:
        found.append(path)
        return of_blocks(path, size)

    monkeypatch.setattr(digests, "_block_digests", counted)
    return found


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    yield
    for thread in threading.enumerate():
        if thread.name == "digests":
            thread.join()
    assert digests._begun == {}


def test_a_file_that_was_begun_is_read_once(file: Path, read: list[str]) -> None:
    expected = digests.block_digests(str(file))
    read.clear()

    digests.begin(str(file))

    assert digests.block_digests(str(file)) == expected
    assert read == [str(file)]


def test_a_file_that_has_changed_since_is_read_again(file: Path, read: list[str]) -> None:
    digests.begin(str(file))
    before = digests._begun[str(file)][1].result()
    file.write_bytes(os.urandom(10_000))
    os.utime(file, ns=(0, 2_000_000_000))

    after = digests.block_digests(str(file))

    assert after == digests.block_digests(str(file)) != before


def test_a_file_that_was_written_just_now_is_not_begun(file: Path, read: list[str]) -> None:
    now = time.time_ns()
    os.utime(file, ns=(now, now))

    digests.begin(str(file))

    assert read == []


def test_an_error_of_reading_is_for_the_caller_that_needs_the_digests(file: Path) -> None:
    digests.begin(str(file.parent / "missing.csv"))
    with pytest.raises(FileNotFoundError):
        digests.block_digests(str(file.parent / "missing.csv"))

    os.utime(file.parent, ns=OLD)
    digests.begin(str(file.parent))
    with pytest.raises(IsADirectoryError):
        digests.block_digests(str(file.parent))


def test_each_byte_counts_wherever_blocks_and_pieces_end(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "_BLOCK_BYTES", 1_000)
    monkeypatch.setattr(digests, "_READ_BYTES", 300)
    content = file.read_bytes()
    found = {digests.block_digests(str(file))}

    for at in (0, 299, 300, 899, 900, 999, 1_000, 9_999):
        file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        found.add(digests.block_digests(str(file)))

    assert len(found) == 9
    assert {len(each) for each in found} == {32 * 10}
