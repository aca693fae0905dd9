"""The tests. Loaded before anything that computes, so that products run on one thread in every process they start, too."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # several test processes run beside each other on few cores
