"""The results table: its columns, its rows, and the export of answers from it."""
