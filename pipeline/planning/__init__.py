"""Which rows are sent, what that costs, and the batches that they go in."""
