"""Comparison of model families on a user's data: study, measurements, analysis, verdict and report."""
