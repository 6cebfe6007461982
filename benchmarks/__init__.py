"""Ratios against peers and limits, each with its parity check: `python -m benchmarks [NAME …]`."""
