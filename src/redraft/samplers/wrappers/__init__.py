"""Samplers that adapt another sampler."""
