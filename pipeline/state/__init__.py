"""The state database: its tables, and one function for each query and each move."""
