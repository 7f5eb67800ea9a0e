"""Text with live retrieval: requests, the rows that are decoded together, what each chunk read."""
