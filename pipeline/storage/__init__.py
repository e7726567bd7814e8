"""Where bytes are: objects on S3, Google Cloud Storage and Azure, folders, temporary folders."""
