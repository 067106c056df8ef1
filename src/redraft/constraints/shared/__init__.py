"""What the kinds of constraint share: their base class, JSON and number patterns, and constraints on a canvas."""
