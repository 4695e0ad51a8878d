"""Runs that were trained elsewhere, into the ledger."""
