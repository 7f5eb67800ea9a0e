"""Text to tokens: documents, the tokenizer, the chunk table, near-duplicates."""
