"""What trials share, what they need and which stages are left, by arithmetic: nothing is trained here."""
