"""Run the pipeline's own steps as Prefect flows, with no logic that the command line lacks. Edge: SQL, HTTP, files."""

import importlib.util
import sys

if importlib.util.find_spec("prefect") is None:
    said = "the flows need Prefect, which is not installed: pip install 'batch-pipeline[prefect]'"
    if sys.argv[0] == "-m":  # `python -m flows.run_job`: a person reads this, no code catches it
        sys.stderr.write(f"error: {said}\n")
        raise SystemExit(2)
    raise ModuleNotFoundError(said, name="prefect")
