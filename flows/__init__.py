"""Run the pipeline's own steps as Prefect flows, with no logic that the command line lacks. Edge: SQL, HTTP, files."""

import importlib.util
import sys

if importlib.util.find_spec("prefect") is None:
    said = "the flows need Prefect, which is not installed: pip install 'batch-pipeline[prefect]'"
    if sys.argv[0] == "-m":  # `python -m flows.run_job`: a person reads this, no code catches it
        sys.stderr.write(f"error: {said}\n")
        raise SystemExit(2)
    raise ModuleNotFoundError(said, name="prefect")

import logging

from prefect.exceptions import FailedRun


def _is_unexpected(record: logging.LogRecord) -> bool:
    """Return False for the traceback that Prefect's engine logs of a flow which ends as Failed with a message.

    The engine raises FailedRun for each such flow, although its message says all, and is in the state and the log.
    """
    return not (record.exc_info and isinstance(record.exc_info[1], FailedRun))


logging.getLogger("prefect.engine").addFilter(_is_unexpected)
