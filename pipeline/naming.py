"""What a person calls a job: the path of its file, or the name under which the database knows it."""

from pathlib import Path
from typing import Any

from sqlalchemy import Row

from pipeline import store, yamlfile
from pipeline.database import Database
from pipeline.errors import InputError, JobError


def is_path(job: str, root: Path | None = None) -> bool:
    """Whether this is a job file's path rather than a job's name. root: where a relative path begins."""
    return ((root or Path()) / job).exists() or "/" in job or job.endswith((".yaml", ".yml"))


def name_in(file: Path) -> str:
    """The name of the job that a file declares; nothing else of it is checked. Raises JobError."""
    try:
        fields, _ = yamlfile.parse(file.read_text(encoding="utf-8"), str(file))
    except (OSError, UnicodeDecodeError) as exc:
        raise JobError(f"{file}: cannot read the job file: {exc}") from exc
    if not isinstance(fields.get("name"), str):
        raise JobError(f"{file}: name: this field is required")
    return str(fields["name"])


def known_job(database: Database, name: str) -> Row[Any]:
    """The job of this name. Raises InputError, which names those that the database knows."""
    with database.read() as conn:
        row = store.job_named(conn, name)
        known = ", ".join(each.name for each in store.all_jobs(conn)) or "none"
    if row is None:
        raise InputError(
            f"{database.shown} knows no job {name!r} (it knows: {known}); run it first, or name another database"
        )
    return row


def file_of(job: Row[Any]) -> Path:
    """The job file of the job's last run. Raises InputError when it is gone."""
    if job.file is None or not Path(job.file).exists():
        raise InputError(f"job {job.name}: its job file {job.file} is gone; give the path of one")
    return Path(job.file)
