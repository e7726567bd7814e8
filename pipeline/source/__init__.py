"""The rows of a job: files, queries and frames, read in bounded chunks."""
