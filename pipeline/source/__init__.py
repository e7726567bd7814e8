"""The source of a job: reads rows from files, SQL queries and frames, in chunks of bounded size."""
