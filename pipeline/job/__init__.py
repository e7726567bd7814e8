"""The job: one declared piece of work. Reads job files, checks them, and fills in their templates."""
