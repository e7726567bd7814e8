"""The storage of the emulator: the data folder, and the batches and uploaded files in it."""
