"""The folder in which a row's attachments are: on this machine, or on object storage. Edge: files, network."""

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

REMEMBERED = 100_000  # objects of a folder on object storage: what was found of them
LOOKING = 32  # requests to object storage at a time
SHOWN = 200  # characters of a path in a message: a column may hold anything


class Folder(Protocol):
    """Where the paths of rows lead. Hashable: folders that are equal hold the same files, which are read once.

    Paths are relative to it and may not leave it. Both methods raise RowProblem with the path and the reason.
    """

    def stat(self, path: str) -> tuple[int, int | str]:
        """The file's size in bytes, and what changes when its content does: nanoseconds, or an ETag."""

    def read(self, path: str) -> bytes:
        """The whole file."""

    def foresee(self, paths: Iterable[str]) -> None:
        """Be ready for `stat` of these, where one by one they would take long. Raises nothing."""


@dataclass(frozen=True)
class LocalFolder:
    """A folder of this machine's file system."""

    path: Path

    def stat(self, path: str) -> tuple[int, int]:
        """Size and time of change (ns)."""
        with _reasons(path):
            found = os.stat(self._inside(path))
        if modes.S_ISDIR(found.st_mode):
            raise RowProblem(f"{shown_path(path)} is a folder, not a file")
        if not modes.S_ISREG(found.st_mode):
            raise RowProblem(f"{shown_path(path)} is no regular file")
        return found.st_size, found.st_mtime_ns

    def read(self, path: str) -> bytes:
        """The whole file."""
        self.stat(path)  # a pipe or a device would have no end
        with _reasons(path):
            return Path(self._inside(path)).read_bytes()

    def foresee(self, paths: Iterable[str]) -> None:
        """Nothing: the operating system is fast."""

    def _inside(self, path: str) -> str:
        """Where `path` leads once `..` and symbolic links are followed, if that is in this folder."""
        root = os.path.realpath(self.path)
        real = os.path.realpath(os.path.join(root, path))
        if os.path.commonpath([root, real]) != root:
            raise RowProblem(f"{shown_path(path)} leads out of {self.path}, the folder of the data file")
        if path.startswith(".") or "/." in path:
            named = os.path.relpath(os.path.normpath(os.path.join(root, path)), root)
            _refuse_hidden(path, named if not named.startswith("..") else os.path.relpath(real, root))
        if _is_in_spool(real, root):
            raise RowProblem(f"{shown_path(path)} is in a spool of the pipeline, which holds no data")
        return real


@dataclass(frozen=True)
class ObjectFolder:
    """A folder on object storage. What was found of an object holds for as long as this folder is used.

    An object that is replaced meanwhile is refused when it is read, and is found anew by the next planning.
    """

    url: str
    _found: dict[str, Object | str] = field(default_factory=dict, compare=False, repr=False)

    def stat(self, path: str) -> tuple[int, str]:
        """Size and ETag. Raises RowProblem, and what `objects.found` raises of the store: no row's fault."""
        found = self._found.get(path) or self._look(path)
        if isinstance(found, str):
            raise RowProblem(found)
        return found.size, found.etag

    def read(self, path: str) -> bytes:
        """The whole object, as it was found."""
        self.stat(path)
        found = self._found[path]
        assert isinstance(found, Object)
        try:
            return objects.read(found)
        except (objects.NotThere, objects.Replaced):
            raise RowProblem(
                f"{shown_path(path)} was replaced or removed while the rows were planned; run again"
            ) from None

    def foresee(self, paths: Iterable[str]) -> None:
        """Look for all of them at the same time."""
        wanted = [path for path in dict.fromkeys(paths) if path not in self._found]
        if len(self._found) + len(wanted) > REMEMBERED:
            self._found.clear()
        with ThreadPoolExecutor(min(LOOKING, len(wanted) or 1), thread_name_prefix="look") as looking:
            for coming in [looking.submit(self._look, path) for path in wanted]:
                coming.exception()  # is raised by `stat`, if that is still so then

    def _look(self, path: str) -> Object | str:
        try:
            found: Object | str = objects.found(self._inside(path))
        except (RowProblem, objects.NoBucket) as exc:
            found = str(exc)
        except objects.NotThere:
            found = f"{shown_path(path)} does not exist"
        self._found[path] = found
        return found

    def _inside(self, path: str) -> str:
        """The address of `path`, if that is in this folder; keys know no `..`, so it is worked out here."""
        root = objects.path_of(self.url)
        real = posixpath.normpath(posixpath.join("/", root, path))
        if posixpath.commonpath(["/" + root, real]) != posixpath.normpath("/" + root):
            raise RowProblem(f"{shown_path(path)} leads out of {self.url}, the folder of the data file")
        _refuse_hidden(path, posixpath.relpath(real, "/" + root))
        return objects.root_of(self.url) + real


@dataclass(frozen=True)
class NoFolder:
    """Where a source has no folder. what: the source, with its article."""

    what: str

    def stat(self, path: str) -> tuple[int, str]:
        """Raises RowProblem."""
        raise RowProblem(
            f"{shown_path(path)} is a path, and {self.what} has no folder: give an http(s) URL, an id or bytes"
        )

    def read(self, path: str) -> bytes:
        """Raises RowProblem."""
        self.stat(path)
        raise AssertionError

    def foresee(self, paths: Iterable[str]) -> None:
        """Nothing."""


def _is_in_spool(file: str, root: str) -> bool:
    """Whether a folder between these two is a local spool."""
    folder = os.path.dirname(file)
    while len(folder) > len(root):
        if os.path.exists(f"{folder}/{MARKER}"):
            return True
        folder = os.path.dirname(folder)
    return False


def _refuse_hidden(path: str, within: str) -> None:
    """within: the same path, from the folder of the data file."""
    if any(part.startswith(".") and part not in (".", "..") for part in within.split("/")):
        raise RowProblem(
            f"{shown_path(path)} is hidden: a name that begins with a dot is no data; give it another name"
        )


def shown_path(path: str) -> str:
    """A path as it stands in a message: quoted, for blanks at its ends; what is no path may be very long."""
    return repr(path if len(path) <= SHOWN else path[:SHOWN] + "…")


def reason_of(exc: Exception) -> str:
    return str(exc).strip().rstrip(".").split("\n")[0][:SHOWN] or type(exc).__name__


@contextmanager
def _reasons(path: str) -> Iterator[None]:
    """What the file system says, as a RowProblem. It is a ValueError when the text can be no path at all."""
    try:
        yield
    except FileNotFoundError as exc:
        raise RowProblem(f"{shown_path(path)} does not exist; paths begin at the folder of the data file") from exc
    except (OSError, ValueError) as exc:
        said = exc.strerror if isinstance(exc, OSError) and exc.strerror else reason_of(exc)
        raise RowProblem(f"{shown_path(path)} cannot be read: {said}") from exc


MARKER = ".batch-pipeline-spool"
