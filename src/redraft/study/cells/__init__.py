"""Registry of cells: one file is one kind of piece that a study computes, named by everything it depends on."""
