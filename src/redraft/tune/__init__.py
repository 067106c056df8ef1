"""Finding the quickest way of decoding whose quality is within a tolerance of the best."""
