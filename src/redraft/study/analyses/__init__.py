"""Registry of analyses: one file is one way from cells to a verdict. Its fields are its decision rule."""
