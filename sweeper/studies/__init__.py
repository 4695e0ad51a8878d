"""The searches as Optuna studies: a copy of the ledger for Optuna's own tools, written beside the sweep and never read back."""
