"""Data: sources of text, columns, splits, tokenizers, chat templates, batches and statistics."""
