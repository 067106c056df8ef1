"""Shared by several checkpoint formats: the base class, configuration keys, and the names of Llama and DiT tensors."""
