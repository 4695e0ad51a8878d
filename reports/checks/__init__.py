"""Whether a report can be trusted: the automatic checks, each with its number and one sentence."""
