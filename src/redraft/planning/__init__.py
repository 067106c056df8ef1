"""Plans: the memory and the time of training and of serving, before anything is loaded."""
