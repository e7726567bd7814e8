"""Planning: choose the rows to send, estimate their cost, and pack their requests into batches."""
