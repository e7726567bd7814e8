"""Prefect flows over the pipeline's own steps. No logic that the command line lacks."""
