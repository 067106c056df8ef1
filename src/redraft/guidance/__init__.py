"""One file per guidance method."""
