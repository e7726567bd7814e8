"""The public API: the commands as functions for scripts and notebooks, one module for each kind of work."""
