"""The job: one declared piece of work, from a YAML file or from Python."""
