"""The command line: parses and prints, and decides nothing."""
