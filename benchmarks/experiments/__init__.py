"""Experiments with a page: `python -m benchmarks.experiments NAME`. They go on where they were stopped."""
