"""The state database: its tables, queries, and moves of batches and rows. Edge: SQL."""
