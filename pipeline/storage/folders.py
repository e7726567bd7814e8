"""Read attachment files from the folder of the data file, local or on object storage. Edge: files, network."""

import os
import posixpath
import stat as modes
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pipeline.errors import RowProblem
from pipeline.storage import objects
from pipeline.storage.objects import Object

CACHED_OBJECTS = 100_000  # objects whose size and ETag one folder remembers
CONCURRENT_REQUESTS = 32  # to object storage
LONGEST_SHOWN = 200  # characters of a path in a message: a column may hold anything


class Folder(Protocol):
    """A folder that the paths in a row are relative to; a path may not lead out of it.

    Hashable: equal folders hold the same files, so that a file is read once for both.
    `stat` and `read` raise RowProblem, which names the path and the reason.
    """

    def stat(self, path: str) -> tuple[int, int | str]:
        """Return the file's size in bytes and its version: the time of change (ns), or the ETag of an object."""

    def read(self, path: str) -> bytes:
        """Return the content of the whole file."""

    def prefetch(self, paths: Iterable[str]) -> None:
        """Fetch and cache what `stat` returns for these paths, where single requests would be slow. Raises nothing."""


@dataclass(frozen=True)
class LocalFolder:
    """A folder in the file system of this machine."""

    path: Path

    def stat(self, path: str) -> tuple[int, int]:
        """Return the file's size in bytes and its time of change (ns)."""
        with _reasons(path):
            found = os.stat(self._inside(path))
        if modes.S_ISDIR(found.st_mode):
            raise RowProblem(f"{quoted_path(path)} is a folder, not a file")
        if not modes.S_ISREG(found.st_mode):
            raise RowProblem(f"{quoted_path(path)} is not a regular file")
        return found.st_size, found.st_mtime_ns

    def read(self, path: str) -> bytes:
        """Return the content of the whole file."""
        self.stat(path)  # refuses pipes and devices, whose content has no end
        with _reasons(path):
            return Path(self._inside(path)).read_bytes()

    def prefetch(self, paths: Iterable[str]) -> None:
        """Do nothing: the operating system answers `stat` fast enough."""

    def _inside(self, path: str) -> str:
        """Return the real path, with `..` and symbolic links resolved.

        Raises RowProblem if it is outside of this folder, hidden, or in a spool.
        """
        root = os.path.realpath(self.path)
        real = os.path.realpath(os.path.join(root, path))
        if os.path.commonpath([root, real]) != root:
            raise RowProblem(f"{quoted_path(path)} leads out of {self.path}, the folder of the data file")
        if path.startswith(".") or "/." in path:
            named = os.path.relpath(os.path.normpath(os.path.join(root, path)), root)
            _refuse_hidden(path, named if not named.startswith("..") else os.path.relpath(real, root))
        if _is_in_spool(real, root):
            raise RowProblem(f"{quoted_path(path)} is in a spool of the pipeline, which does not hold data")
        return real


@dataclass(frozen=True)
class ObjectFolder:
    """A folder on object storage. The size and ETag of an object are looked up once and then cached.

    An object that is replaced after that is refused when it is read; the next planning looks it up again.
    """

    url: str
    _found: dict[str, Object | str] = field(default_factory=dict, compare=False, repr=False)

    def stat(self, path: str) -> tuple[int, str]:
        """Return the object's size in bytes and its ETag.

        Raises RowProblem, and the errors of `objects.head` about the store itself, which are no fault of the row.
        """
        found = self._found.get(path) or self._look_up(path)
        if isinstance(found, str):
            raise RowProblem(found)
        return found.size, found.etag

    def read(self, path: str) -> bytes:
        """Return the content of the whole object. Raises RowProblem if it was replaced after it was looked up."""
        self.stat(path)
        found = self._found[path]
        assert isinstance(found, Object)
        try:
            return objects.read(found)
        except (objects.NotFound, objects.Replaced):
            raise RowProblem(
                f"{quoted_path(path)} was replaced or removed while the rows were planned; run again"
            ) from None

    def prefetch(self, paths: Iterable[str]) -> None:
        """Look up all of these objects concurrently."""
        wanted = [path for path in dict.fromkeys(paths) if path not in self._found]
        if len(self._found) + len(wanted) > CACHED_OBJECTS:
            self._found.clear()
        with ThreadPoolExecutor(min(CONCURRENT_REQUESTS, len(wanted) or 1), thread_name_prefix="look") as pool:
            for future in [pool.submit(self._look_up, path) for path in wanted]:
                future.exception()  # waits; `stat` asks again, and raises the error if it persists

    def _look_up(self, path: str) -> Object | str:
        """Ask the store for the object and cache it, or the sentence that says why it cannot be used."""
        try:
            found: Object | str = objects.head(self._inside(path))
        except (RowProblem, objects.BucketNotFound) as exc:
            found = str(exc)
        except objects.NotFound:
            found = f"{quoted_path(path)} does not exist"
        self._found[path] = found
        return found

    def _inside(self, path: str) -> str:
        """Return the URL of `path`; `..` is resolved here, because object storage does not know it.

        Raises RowProblem if it is outside of this folder, or hidden.
        """
        root = objects.path_of(self.url)
        real = posixpath.normpath(posixpath.join("/", root, path))
        if posixpath.commonpath(["/" + root, real]) != posixpath.normpath("/" + root):
            raise RowProblem(f"{quoted_path(path)} leads out of {self.url}, the folder of the data file")
        _refuse_hidden(path, posixpath.relpath(real, "/" + root))
        return objects.root_of(self.url) + real


@dataclass(frozen=True)
class NoFolder:
    """Stands in for the folder of a source that has none, and refuses every path.

    what: the source in messages, with its article: "a SQL query".
    """

    what: str

    def stat(self, path: str) -> tuple[int, str]:
        """Raise RowProblem."""
        raise RowProblem(
            f"{quoted_path(path)} is a path, and {self.what} has no folder: give an http(s) URL, an id or bytes"
        )

    def read(self, path: str) -> bytes:
        """Raise RowProblem."""
        self.stat(path)
        raise AssertionError

    def prefetch(self, paths: Iterable[str]) -> None:
        """Do nothing: no path can be read."""


def _is_in_spool(file: str, root: str) -> bool:
    """Return whether one of the folders between `root` and `file` is a local spool."""
    folder = os.path.dirname(file)
    while len(folder) > len(root):
        if os.path.exists(f"{folder}/{MARKER}"):
            return True
        folder = os.path.dirname(folder)
    return False


def _refuse_hidden(path: str, within: str) -> None:
    """Raise RowProblem if a part of `within` begins with a dot. within: `path`, relative to the data file's folder."""
    if any(part.startswith(".") and part not in (".", "..") for part in within.split("/")):
        raise RowProblem(
            f"{quoted_path(path)} is hidden: files whose names begin with a dot are not read; give it another name"
        )


def quoted_path(path: str) -> str:
    """Return the path for a message: quoted, so that blanks at its ends are seen, and cut if it is very long."""
    return repr(path if len(path) <= LONGEST_SHOWN else path[:LONGEST_SHOWN] + "…")


def reason_of(exc: Exception) -> str:
    """Return the first line of the error's message, without a final period; its type's name if there is none."""
    return str(exc).strip().rstrip(".").split("\n")[0][:LONGEST_SHOWN] or type(exc).__name__


@contextmanager
def _reasons(path: str) -> Iterator[None]:
    """Turn an error of the file system into a RowProblem. Text that cannot be a path at all gives a ValueError."""
    try:
        yield
    except FileNotFoundError as exc:
        raise RowProblem(f"{quoted_path(path)} does not exist; paths begin at the folder of the data file") from exc
    except (OSError, ValueError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else reason_of(exc)
        raise RowProblem(f"{quoted_path(path)} cannot be read: {reason}") from exc


MARKER = ".batch-pipeline-spool"
