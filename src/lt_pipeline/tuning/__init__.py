"""Sweeps: search spaces, Optuna studies and the processes that work on them."""
