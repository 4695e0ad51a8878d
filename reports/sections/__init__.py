"""One file a section of the report: what it takes out of the evidence, and how that is drawn."""
