"""Benchmarks of biotorch: `python -m benchmarks --help`."""
