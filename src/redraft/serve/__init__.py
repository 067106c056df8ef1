"""HTTP server: continuous batching of many requests behind an API compatible with OpenAI's clients."""
