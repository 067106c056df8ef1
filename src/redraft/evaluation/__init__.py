"""Shared by ``evaluate``, ``tune`` and ``compare``: items, texts, scores, votes, timing, memory and statistics."""
