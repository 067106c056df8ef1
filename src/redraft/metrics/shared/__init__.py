"""What several metrics share: words of any script."""
