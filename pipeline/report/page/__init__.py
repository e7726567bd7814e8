"""The page of a job: what it answered, how good that is and what it cost, as one HTML file. Edge: SQL, files."""
