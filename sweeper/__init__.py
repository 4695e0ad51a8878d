"""Orchestration: decides where, in which order and once. Imports nothing here, so that `sweeper --help` stays light."""
