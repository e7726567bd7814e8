"""What the emulated models know: the catalogue, which requests they take, what they answer and what it costs."""
