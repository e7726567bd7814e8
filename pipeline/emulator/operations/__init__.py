"""What each call does: one module for each resource of the API, and the work on batches that follows a create."""
