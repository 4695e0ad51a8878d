"""One training step with one meaning, in three forms: eager, compiled, captured."""
