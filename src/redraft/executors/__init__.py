"""Where the tasks of a study run: one after the other in this process, or side by side under Ray."""
