"""The tools of a job that the pipeline runs: their functions, found and proven, and the calls of them."""
