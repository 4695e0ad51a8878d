"""Whole pages: the report of a sweep, its plan, searches raced on old tables, two sweeps side by side."""
