"""Functions shared by cache policies."""
