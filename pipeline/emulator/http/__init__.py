"""How calls reach the emulator: a socket, or the SDK in the same process, and what may go wrong on the way."""
