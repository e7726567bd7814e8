"""Access to stored bytes: object storage (S3, Google Cloud Storage, Azure), local folders, temporary folders."""
