"""Corpora of any size: documents read one after the other, split by their content, encoded on all cores, gone on with."""
