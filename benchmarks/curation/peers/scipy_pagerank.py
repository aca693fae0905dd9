"""PageRank with scipy's CSR product on a graph of ours: prints CPU seconds, steps, and writes the scores.

The power method with dangling mass, to the same L1 change. The time is from arrays in memory to scores.
"""

import sys
import time

import numpy as np
from scipy.sparse import csr_matrix

folder, dtype, tolerance = sys.argv[1], np.dtype(sys.argv[2]), float(sys.argv[3])
starts, sources, out_degree = (np.load(f"{folder}/{name}.npy") for name in ("starts", "sources", "out_degree"))
n = len(out_degree)
began = time.process_time()
matrix = csr_matrix((np.ones(len(sources), dtype), sources, starts), shape=(n, n))
inverse = np.where(out_degree > 0, 1 / np.maximum(out_degree, 1), 0).astype(dtype)
dangling = out_degree == 0
scores = np.full(n, 1 / n, dtype)
for _step in range(1, 201):
    new = 0.85 * (matrix @ (scores * inverse)) + dtype.type((0.15 + 0.85 * scores[dangling].sum()) / n)
    change = float(np.abs(new - scores).sum())
    scores = new
    if change <= tolerance:
        break
print(time.process_time() - began, _step)
np.save(f"{folder}/scipy.npy", scores)
