"""How a row becomes the bytes of its request, and how requests become the body of a batch."""
