"""HTTP calls to the emulator, over a socket or in the same process, and the faults of whole calls."""
