"""The spool: stores the request bodies of batches until they are no longer needed."""
