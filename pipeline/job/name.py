"""Is a job given by its file or by its name, and which name does a file declare? Edge: files.

This module imports nothing heavy: commands that load no job use it.
"""

from pathlib import Path

from pipeline.errors import JobError
from pipeline.job import yamlfile

#: Stands between the name of a job and that of its trial. No job has it in its name.
OF_TRIAL = ":"


def without_trial(job: str) -> tuple[str, str | None]:
    """Return JOB of the command line and the trial after it, as in `tickets.yaml:cheap`; None: it names no trial."""
    head, colon, trial = job.rpartition(OF_TRIAL)
    return (head, trial) if colon and head and "/" not in trial and not Path(job).exists() else (job, None)


def with_trial(job: str, trial: str | None) -> str:
    """Return what names a trial of a job. job: its name or file; trial: None: the job itself."""
    return job if trial is None else f"{job}{OF_TRIAL}{trial}"


def is_path(job: str, root: Path | None = None) -> bool:
    """Return whether `job` is the path of a job file, rather than the name of a job.

    root: the folder for relative paths; None for the current folder.
    """
    file, _ = without_trial(job)
    return ((root or Path()) / file).exists() or "/" in file or file.endswith((".yaml", ".yml"))


def read_name(file: Path) -> str:
    """Return the name of the job that a file declares, without a check of the other fields. Raises JobError."""
    try:
        fields, _ = yamlfile.parse(file.read_text(encoding="utf-8"), str(file))
    except (OSError, UnicodeDecodeError) as exc:
        raise JobError(f"{file}: cannot read the job file: {exc}") from exc
    if not isinstance(fields.get("name"), str):
        raise JobError(f"{file}: name: this field is required")
    return str(fields["name"])
