"""Is a job given by its file or by its name, and which name does a file declare? Edge: files.

This module imports nothing heavy: commands that load no job use it.
"""

from pathlib import Path

from pipeline.errors import JobError
from pipeline.job import yamlfile


def is_path(job: str, root: Path | None = None) -> bool:
    """Return whether `job` is the path of a job file, rather than the name of a job.

    root: the folder for relative paths; None for the current folder.
    """
    return ((root or Path()) / job).exists() or "/" in job or job.endswith((".yaml", ".yml"))


def read_name(file: Path) -> str:
    """Return the name of the job that a file declares, without a check of the other fields. Raises JobError."""
    try:
        fields, _ = yamlfile.parse(file.read_text(encoding="utf-8"), str(file))
    except (OSError, UnicodeDecodeError) as exc:
        raise JobError(f"{file}: cannot read the job file: {exc}") from exc
    if not isinstance(fields.get("name"), str):
        raise JobError(f"{file}: name: this field is required")
    return str(fields["name"])
