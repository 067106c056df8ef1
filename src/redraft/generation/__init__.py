"""Generation, from a prompt to a finished sequence: start, decoding loop, output length, infilling, scoring."""
