"""`python -m benchmarks.krablet`: the benchmarks of the warehouse."""

from benchmarks.krablet.claim import main

main()
