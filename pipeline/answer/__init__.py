"""Read the API's results: the outcome of each request, and the values in each answer."""
