"""Languages as finite automata: patterns, automata over characters, over bytes, and over the tokens of a vocabulary."""
