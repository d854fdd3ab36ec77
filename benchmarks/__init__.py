"""Benchmarks of the pipeline and of what people would use instead: `make bench`."""
