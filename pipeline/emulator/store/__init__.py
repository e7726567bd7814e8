"""What outlives a restart: the data folder, and the batches and uploads in it."""
