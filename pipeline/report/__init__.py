"""What people read, and the same as facts for programs."""
