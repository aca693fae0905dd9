"""`python -m benchmarks.curation.figures`: README.md's table of what curation is to reach, from results.json.

`python -m benchmarks.curation` writes it anew after every benchmark, and a test compares the two.
"""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.aims import Aim, between, table

FOLDER = Path(__file__).parent
README, RESULTS = FOLDER / "README.md", FOLDER / "results.json"
BEGIN = "<!-- figures: written by python -m benchmarks.curation.figures -->"


AIMS = (
    Aim(what="bytes to decode, phash12 and colour hash", name="hash_vs_imagehash", of="ratio", least=6),
    Aim(what="the five pixel filters", name="filters_vs_numpy", of="ratio", least=6),
    Aim(what="planted duplicates found", name="dup_recall", least=0.9),
    Aim(what="pairs found that are none, beside plain phash12 at that recall", name="dup_false_pairs", of="ratio", most=0.1),
    Aim(what="self-join of 10^6 hashes of 144 bits, exact to 14", name="neardup_1m_seconds", most=10),
    Aim(what="the same, planted pairs missed", name="neardup_1m_missed", most=0),
    Aim(what="the same, hashes skewed like real ones", name="neardup_1m_skewed_seconds", most=10),
    Aim(what="10^5 new hashes against 10^6 old", name="neardup_100k_new_seconds", most=10),
    Aim(what="PageRank, 10^6 pages, 10^7 links, to 1e-10", name="pagerank_vs_scipy", of="ratio", most=1.5),
    Aim(
        what="the same beside single precision",
        name="pagerank_vs_scipy_float32",
        note="no aim: float32 only reaches 1e-7",
    ),
    Aim(what="one plain step, 10^6 links", name="pagerank_vs_danker", of="ratio", least=10),
    Aim(what="one plain step, 10^7 links", name="pagerank_vs_danker_10m", of="ratio", least=10),
    Aim(what="PageRank of as many pages as the English Wikipedia has", name="pagerank_full_mb", most=16_000),
    Aim(what="its processor time", name="pagerank_full_cpu_s"),
    Aim(what="writing that graph", name="graph_write_full_mb", most=16_000),
    Aim(what="pagelinks rows read", name="dump_pagelinks_rows_per_s", least=5e6),
    Aim(what="linktarget rows read, escape-safe", name="dump_linktarget_rows_per_s", least=5e6),
    Aim(what="10^6 names in 200,000 captions", name="entities_captions_per_s", least=5000),
    Aim(what="the same, memory", name="entities_match_mb", most=1500),
    Aim(what="published toy, three levels and resampling, divergence from uniform", name="hier_kl", most=0.06),
    Aim(what="long-tailed CIFAR: the three rarest classes' share of a sample", name="tail_cifar", of="ratio", least=1),
    Aim(what="gain over random there, lower end of the interval", name="tail_cifar_gain_low", least=0),
    Aim(what="openclipart: rare keywords that a sample still has", name="tail_openclipart", of="ratio", least=1),
    Aim(what="gain over random there, lower end of the interval", name="tail_openclipart_gain_low", least=0),
    Aim(what="drawings: rare tags that a sample still has", name="tail_drawings", note="no aim: a hard case"),
    Aim(what="loader, latents and text features, one process", name="loader_vs_webdataset", of="ratio", least=5),
    Aim(what="the same", name="loader_vs_litdata", of="ratio", least=1.2),
    Aim(what="keys of a mix drawn", name="mix_keys_per_s*", note="no aim"),
    Aim(what="a detector of frames, made on demand: recall", name="detector_frame_recall", note="no aim"),
    Aim(what="its precision", name="detector_frame_precision", note="no aim"),
    Aim(what="the detector of generated pictures: recall", name="detector_ai_recall", note="no aim but to report it"),
    Aim(what="its precision", name="detector_ai_precision", note="no aim but to report it"),
    Aim(what="its share of real pictures called generated", name="detector_ai_false_rate", note="no aim but to report it"),
    Aim(what="`curate mixed` over every source that installs", name="pipeline_pictures", least=100_000),
    Aim(what="of these kept", name="pipeline_kept"),
    Aim(what="the same again, killed at random", name="pipeline_kills", least=1),
    Aim(what="both tables equal, but for the times of fetching", name="pipeline_tables_equal", least=1),
    Aim(what="decoded, hashed and filtered", name="pipeline_pictures_per_s", least=280),
    *(Aim(what=f"the stage `{stage}`", name=f"pipeline_{stage}") for stage in ("fetch", "probe", "hashes", "pixels", "captions")),
)  # fmt: skip


def main() -> None:
    results = json.loads(RESULTS.read_text())
    README.write_text(between(README.read_text(), BEGIN, table(results, AIMS)))


if __name__ == "__main__":
    main()
