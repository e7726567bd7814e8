"""From a row to the bytes of its request, and from requests to bodies of batches."""
