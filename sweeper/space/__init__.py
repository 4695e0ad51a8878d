"""The search-space file: read, checked with line numbers, and turned into trials."""
