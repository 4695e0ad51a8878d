"""Can I trust this? The automatic checks, each with its number and one sentence."""
