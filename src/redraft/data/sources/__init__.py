"""One file = one kind of input."""
