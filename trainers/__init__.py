"""One trial: turn a `TrialSpec` into a `RunRecord`.

Imports nothing, so that records can be read where torch is not installed.
"""
