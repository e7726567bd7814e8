"""A page is written whole or not at all, for its owner alone, and never over what is there."""

from pathlib import Path

import pytest

from pipeline.errors import InputError, Stopped
from pipeline.report.page.file import write
from pipeline.storage import durable


def test_only_the_owner_can_read_it(tmp_path: Path) -> None:
    path = tmp_path / "page.html"

    written = write(path, "<p>\u00fc", overwrite=False)

    assert path.read_text(encoding="utf-8") == "<p>\u00fc"
    assert written == 5
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_file_that_is_there_is_replaced_only_if_that_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("before")
    path.chmod(0o644)

    with pytest.raises(InputError, match="exists; give another name with -o, or --overwrite"):
        write(path, "after", overwrite=False)
    assert path.read_text() == "before"

    write(path, "after", overwrite=True)
    assert path.read_text() == "after"
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_link_is_not_followed(tmp_path: Path, overwrite: bool) -> None:
    other, path = tmp_path / "other.txt", tmp_path / "page.html"
    other.write_text("of somebody else")
    path.symlink_to(other)

    if overwrite:
        write(path, "page", overwrite=True)
    else:
        with pytest.raises(InputError, match="exists"):
            write(path, "page", overwrite=False)

    assert other.read_text() == "of somebody else"
    assert path.is_symlink() is not overwrite


def test_a_folder_and_a_missing_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder; give the name of a file"):
        write(tmp_path, "page", overwrite=True)
    with pytest.raises(InputError, match="there is no folder"):
        write(tmp_path / "missing" / "page.html", "page", overwrite=False)


def test_a_disk_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "page.html"
    path.write_text("before")

    def full(out: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(durable, "sync_file", full)
    with pytest.raises(Stopped, match="No space left on device; nothing was written"):
        write(path, "after", overwrite=True)

    assert path.read_text() == "before"
    assert [each.name for each in tmp_path.iterdir()] == ["page.html"]
