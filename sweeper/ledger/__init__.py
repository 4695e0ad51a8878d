"""MLflow, both directions: what a sweep is told and what it reads back, and the dashboard on it."""
