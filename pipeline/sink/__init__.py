"""The results table, and answers read and exported from it."""
