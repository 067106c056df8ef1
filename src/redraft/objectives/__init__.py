"""Registry of training objectives: one file is one loss, computed from a batch and the outputs of a network."""
