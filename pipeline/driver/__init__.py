"""Drivers: the processes that move batches, and what they work with: environment, settings, spool, listing."""
