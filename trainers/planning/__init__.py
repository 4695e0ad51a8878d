"""What trials share, what they need and what became of it, by arithmetic: nothing is trained and torch is not needed."""
