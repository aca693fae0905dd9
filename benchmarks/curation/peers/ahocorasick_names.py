"""Names in captions with ahocorasick_rs: prints build seconds, match seconds (CPU), peak MB and hits.

Whole words by a blank around names and captions, overlapping; names and captions come folded, one a line.
"""

import sys
import time
from pathlib import Path

from ahocorasick_rs import AhoCorasick, Implementation

names = [f" {line} " for line in Path(sys.argv[1]).read_text().splitlines()]
captions = Path(sys.argv[2]).read_text().splitlines()
began = time.process_time()
automaton = AhoCorasick(names, store_patterns=False, implementation=Implementation.ContiguousNFA)
built = time.process_time()
hits = 0
for caption in captions:
    hits += len(automaton.find_matches_as_indexes(f" {caption} ", overlapping=True))
ended = time.process_time()
fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(built - began, ended - built, int(fields["VmHWM"].split()[0]) / 1024, hits)
