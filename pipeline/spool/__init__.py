"""Request bodies until they are no longer needed."""
