"""What the API says of one request, and what is made of it."""
