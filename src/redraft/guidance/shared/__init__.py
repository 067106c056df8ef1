"""Functions shared by guidance methods."""
