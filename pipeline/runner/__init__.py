"""The drivers: `run` takes a job to its end, `sweep` does once what is due."""
