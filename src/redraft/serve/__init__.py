"""Serving: many requests through one network at a time, over an HTTP interface that OpenAI's clients know."""
