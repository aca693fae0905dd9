"""Reads one training set with one loader: `python loaders.py LOADER FOLDER PASSES` prints a JSON line.

All give batches of (keys, latents, text features padded to the longest caption, mask), tensors of float16, from one process
without workers. Peers read in stored order, which is the fastest they have; ours is shuffled. The first pass warms the page
cache and is checked: the digest is of all keys, latents and real tokens, whatever the order.
"""

import hashlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

BATCH = 64
Batch = tuple[list[str], torch.Tensor, torch.Tensor, torch.Tensor]


def collated(
    keys: list[str], latents: Sequence[torch.Tensor], tokens: Sequence[torch.Tensor], shape: list[int]
) -> Batch:
    """Samples as one batch, padded."""
    lengths = torch.tensor([len(of) for of in tokens])
    features = torch.nn.utils.rnn.pad_sequence(list(tokens), batch_first=True)
    mask = torch.arange(features.shape[1])[None] < lengths[:, None]
    return keys, torch.stack(list(latents)).view(-1, *shape), features, mask


def as_tensor(data: bytes, *shape: int) -> torch.Tensor:
    return torch.frombuffer(bytearray(data) if not isinstance(data, bytearray) else data, dtype=torch.float16).view(
        *shape
    )


def ours(folder: Path, facts: dict) -> Iterator[Batch]:
    from pleinair.packs.loader import LatentLoader
    from pleinair.packs.pack import Pack
    from pleinair.packs.plan import LoaderConfig

    config = LoaderConfig(batch_size=BATCH, drop_caption=0.0, dtype="stored", remainder="short")
    loader = LatentLoader(Pack(folder / "ours", verify=False), facts["resolution"], config)
    epoch = 0
    while True:
        for step in range(epoch * len(loader), (epoch + 1) * len(loader)):
            batch = loader.batch(step)
            yield batch.keys, batch.latents_BCHW, batch.text_features_BTLD, batch.text_mask_BT
        epoch += 1
        yield [], *(torch.empty(0),) * 3


def webdataset(folder: Path, facts: dict) -> Iterator[Batch]:
    import webdataset as wds

    token = facts["token"]

    def collate(samples: list) -> Batch:
        keys = [sample["__key__"] for sample in samples]
        latents = [torch.from_numpy(np.frombuffer(sample["latents"], np.float16)) for sample in samples]
        tokens = [torch.from_numpy(np.frombuffer(sample["tokens"], np.float16)).view(-1, *token) for sample in samples]
        return collated(keys, latents, tokens, facts["shape"])

    shards = [str(path) for path in sorted((folder / "webdataset").glob("*.tar"))]
    while True:
        yield from wds.WebDataset(shards, shardshuffle=False).batched(BATCH, collation_fn=collate, partial=True)
        yield [], *(torch.empty(0),) * 3


def litdata(folder: Path, facts: dict) -> Iterator[Batch]:
    from litdata import StreamingDataLoader, StreamingDataset

    def collate(samples: list) -> Batch:
        tokens = [sample["tokens"].view(-1, *facts["token"]) for sample in samples]
        return collated(
            [sample["key"] for sample in samples], [of["latents"] for of in samples], tokens, facts["shape"]
        )

    dataset = StreamingDataset(str(folder / "litdata"), shuffle=False, drop_last=False)
    loader = StreamingDataLoader(dataset, batch_size=BATCH, num_workers=0, collate_fn=collate, drop_last=False)
    while True:
        yield from loader
        yield [], *(torch.empty(0),) * 3


def digest_of(batch: Batch) -> int:
    keys, latents, features, mask = batch
    total = 0
    for place, key in enumerate(keys):
        tokens = features[place][mask[place]]
        told = key.encode() + latents[place].numpy().tobytes() + tokens.numpy().tobytes()
        total += int.from_bytes(hashlib.blake2b(told, digest_size=8).digest(), "little")
    return total % 2**64


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(sys.argv[2])
    facts = json.loads((folder / "facts.json").read_text())
    batches = {"ours": ours, "webdataset": webdataset, "litdata": litdata}[sys.argv[1]](folder, facts)
    digest = num_samples = 0
    for batch in batches:
        if not batch[0]:
            break
        digest = (digest + digest_of(batch)) % 2**64
        num_samples += len(batch[0])
    rates: dict[str, list[float]] = {"cpu": [], "wall": []}
    for _ in range(int(sys.argv[3])):
        cpu, wall, count = time.process_time(), time.perf_counter(), 0
        for batch in batches:
            if not batch[0]:
                break
            count += len(batch[0])
        rates["cpu"].append(count / (time.process_time() - cpu))
        rates["wall"].append(count / (time.perf_counter() - wall))
        assert count == num_samples
    status = Path("/proc/self/status").read_text()
    anonymous = int(status.split("RssAnon:")[1].split()[0]) / 1024
    peak = int(status.split("VmHWM:")[1].split()[0]) / 1024  # ru_maxrss would be the parent's from before exec
    told = {"digest": digest, "samples": num_samples, "peak_mib": peak, "anonymous_mib": anonymous}
    print(json.dumps(told | {name: sorted(of)[len(of) // 2] for name, of in rates.items()}))


main()
