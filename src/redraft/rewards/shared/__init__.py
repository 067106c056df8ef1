"""Shared by rewards: the answer within a text, and numbers."""
