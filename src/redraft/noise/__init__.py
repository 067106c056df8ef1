"""One file per forward process: how clean text becomes noise. ``schedules/`` has one file per noise schedule."""
