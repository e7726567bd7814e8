"""The steps of a driver, each for one kind of thing that is due."""
