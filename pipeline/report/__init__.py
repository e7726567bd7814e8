"""Report on jobs and runs: lines of text for people, and the same as JSON facts for programs. Edge: SQL, logging."""
