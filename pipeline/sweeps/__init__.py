"""Sweeps: many runs as jobs, with search, workers and launchers."""
