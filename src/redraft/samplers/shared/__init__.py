"""Functions shared by samplers."""
