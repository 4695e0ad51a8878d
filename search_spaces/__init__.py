"""What to try: search-space files, data only.

A package so that an installed `sweeper` finds them.
"""
