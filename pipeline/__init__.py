"""Experiment-tracked image classification: ingest → preprocess → train → evaluate → tracking."""
