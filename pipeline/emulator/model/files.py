"""An uploaded file, as the checks and answers of requests read it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

TEXT_BYTES = 100_000  #: the part of an uploaded text that is read


@dataclass(frozen=True)
class StoredFile:
    """A row of the table `files` and the path of its bytes. Times: microseconds since 1970; expires_us None: never."""

    number: int
    id: str
    workspace: str
    filename: str
    mime_type: str
    size_bytes: int
    created_us: int
    expires_us: int | None
    path: Path

    def expired(self, now_us: int) -> bool:
        """Return whether the file has expired at this time."""
        return self.expires_us is not None and self.expires_us <= now_us

    def text(self) -> str:
        """Return the first TEXT_BYTES of the file as text. Bytes that are not UTF-8 are replaced.

        Empty if the file was deleted in the meantime.
        """
        try:
            with self.path.open("rb") as file:
                return file.read(TEXT_BYTES).decode(errors="replace")
        except FileNotFoundError:
            return ""


FileFinder = Callable[[str], StoredFile | None]  #: returns the file with an id in one workspace; None if there is none


def no_files(file_id: str) -> StoredFile | None:
    """Return None: a FileFinder for requests without files."""
    return None
