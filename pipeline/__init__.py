"""Rows in, a SQL table of answers out, through Anthropic's Message Batches API."""
