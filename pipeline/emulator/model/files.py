"""An uploaded file, as a request that names it finds it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

TEXT_BYTES = 100_000  #: of an uploaded text, as much as anybody here reads


@dataclass(frozen=True)
class StoredFile:
    """A row of `files`, and where its bytes are; times in microseconds since 1970, expires_us None: never."""

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
        return self.expires_us is not None and self.expires_us <= now_us

    def text(self) -> str:
        """Its beginning as UTF-8; what is none is replaced. Empty if it was deleted meanwhile."""
        try:
            with self.path.open("rb") as file:
                return file.read(TEXT_BYTES).decode(errors="replace")
        except FileNotFoundError:
            return ""


FileFinder = Callable[[str], StoredFile | None]  #: by id, within one workspace


def no_files(file_id: str) -> StoredFile | None:
    """A FileFinder that finds nothing."""
    return None
