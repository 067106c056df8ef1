"""What several benchmarks share: multiple choice, plain text, programs."""
