"""Prefect flows over the pipeline's own steps. No logic that the command line lacks."""

import importlib.util
import sys

if importlib.util.find_spec("prefect") is None:
    said = "the flows need Prefect, which is not installed: pip install 'batch-pipeline[prefect]'"
    if sys.argv[0] == "-m":  # `python -m flows.run_job`: for a person, not for code that could catch it
        sys.stderr.write(f"error: {said}\n")
        raise SystemExit(2)
    raise ModuleNotFoundError(said, name="prefect")
