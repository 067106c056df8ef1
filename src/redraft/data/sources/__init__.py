"""Registry of data sources: one file is one kind of input (a subclass of ``data.rows.Source``)."""
