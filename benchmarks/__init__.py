"""Benchmarks: medians of the ratios of two sides that are measured in turn in one run."""
