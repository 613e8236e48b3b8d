"""Benchmarks: ratios of two sides, interleaved in one run, medians."""
