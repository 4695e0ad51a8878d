"""Somebody else's trainer: its command run as a trial, watched, read, ended and gone on with."""
