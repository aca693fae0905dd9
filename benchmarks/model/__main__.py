"""`python -m benchmarks.model`: the benchmark of the transformer."""

from benchmarks.model.transformer import main

main()
