"""Estimators of a text's log-likelihood, for the objectives of post-training: one file each."""
