"""Registry of noise schedules: one file is one alpha(t), the probability that a token is unchanged at time t."""
