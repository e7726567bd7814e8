"""What can a driver tell? One class an event, with its facts, its level in a log and its line for people. Pure."""
