"""Define the events of drivers: one class per event, with its facts, its log level and its line for people. Pure."""
