"""Shipped checkpoints: built from their recipes, measured on rows that are shipped too, and verified."""
