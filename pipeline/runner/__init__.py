"""The drivers: `run` works until each row has an outcome, `sweep` does the work that is due and does not wait."""
