"""Benchmarks of training: one module per part, each with `measure(rounds)` and, where something is to be reached, `AIMS`."""
