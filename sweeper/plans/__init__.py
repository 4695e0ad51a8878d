"""A sweep before anything runs: its trials, costs, fit in memory, and what it could resolve."""
