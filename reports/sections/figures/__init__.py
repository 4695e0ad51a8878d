"""The charts of several sections, drawn from plain values."""
