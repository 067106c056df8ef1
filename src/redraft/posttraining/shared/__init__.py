"""Shared by post-training: copies of rows, and which masked models have an estimate."""
