"""The steps of a driver; each does one kind of work that is due."""
