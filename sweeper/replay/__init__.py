"""Searches raced, and whole sweeps run, on tables of runs that somebody trained before."""
