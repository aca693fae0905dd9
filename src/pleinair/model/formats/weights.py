"""Transformer weights on disk, in four layouts of the same tensors.

    pleinair        folder: config.json + transformer.safetensors                        diffusers' tensor names
    diffusers       folder: config.json + diffusion_pytorch_model.safetensors (or shards)    what from_pretrained loads
    native          one .safetensors file in the official release's tensor names
    native-mixed    the same as the release stores it: float32 where it is cheap and matters, bfloat16 for the rest

    open_weights(path) -> Weights(config, tensors unread) -> write_weights(path, layout)     any file size
                                                          -> load_transformer(path)          a model

Nothing pickled is ever opened. A file or folder appears whole, by rename, or not at all.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from pleinair.config import from_document, to_document
from pleinair.model.formats.configs import (
    DIFFUSERS_CLASS,
    LATENTS_KEY,
    METADATA_KEY,
    config_from_diffusers,
    config_from_shapes,
    diffusers_config,
    require_released_layout,
    resolved,
)
from pleinair.model.formats.names import (
    NATIVE_PREFIX,
    listed,
    native_name,
    native_shape,
    nearest,
    pleinair_from_native,
    pleinair_name,
    pleinair_shape,
)
from pleinair.model.transformer import Transformer, TransformerConfig
from pleinair.records.errors import CheckpointError, ConfigError
from pleinair.records.pickles import refuse_pickle
from pleinair.tensor_files import LazyTensor, in_memory, list_tensors, read_tensors, write_tensors

Layout = Literal["pleinair", "diffusers", "native", "native-mixed"]

CONFIG_FILE = "config.json"
PLEINAIR_FILE = "transformer.safetensors"
DIFFUSERS_FILE = "diffusion_pytorch_model.safetensors"
DIFFUSERS_INDEX = DIFFUSERS_FILE + ".index.json"
SHARD_BYTES = 10_000_000_000
"""Largest file of a diffusers folder, as diffusers itself splits them."""
_FLOAT32_STEMS = ("img_in.", "time_embed.", "time_mod_proj.", "txt_in.", "final_layer.")
_FLOAT32_PARTS = ("norm_q.weight", "norm_k.weight", "norm1.weight", "norm2.weight", "scale_shift_table")


@dataclass(frozen=True)
class Weights:
    """A transformer's weights on disk, known by name and shape, not yet read."""

    path: Path
    """Where they were found."""
    layout: Layout
    """How they are stored."""
    config: TransformerConfig
    """The network they belong to."""
    tensors: dict[str, LazyTensor]
    """Every tensor under our name and in our shape."""
    files: tuple[Path, ...]
    """The safetensors files that hold them."""
    latent_space: str = ""
    """Whose latents they have learned, as written beside them; empty where nothing says so."""


def open_weights(path: str | os.PathLike[str]) -> Weights:
    """Recognise the transformer stored at `path` without reading its tensors; a pipeline's `transformer/` is found.

    Raises CheckpointError for pickles, which stay unopened, for files that are not safetensors or hold something else,
    and for a tensor that is missing, unknown or of another shape, naming up to five and the nearest known name.
    """
    path = Path(path)
    refuse_pickle(path)
    if not path.exists():
        raise CheckpointError(f"{path} does not exist: give a .safetensors file or a folder that holds one")
    weights = _open_folder(path) if path.is_dir() else _open_file(path)
    _check_names(weights)
    return weights


def load_transformer(
    path: str | os.PathLike[str], *, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
) -> Transformer:
    """The transformer stored at `path`, in any layout.

    Every tensor keeps its stored dtype unless `dtype` is given. Raises CheckpointError as `open_weights` does.
    """
    weights = open_weights(path)
    with torch.device("meta"):
        model = Transformer(weights.config)
    state: dict[str, torch.Tensor] = {}
    for file in weights.files:
        tensors = read_tensors(file, device)
        state |= pleinair_from_native(tensors) if weights.layout.startswith("native") else tensors
    if dtype is not None:
        state = {name: tensor.to(dtype) for name, tensor in state.items()}
    model.load_state_dict(state, assign=True)
    return model


def save_transformer(
    model: Transformer, path: str | os.PathLike[str], layout: Layout = "pleinair", *, shard_bytes: int = SHARD_BYTES
) -> Path:
    """Write the transformer: a folder for "pleinair" and "diffusers", one .safetensors file for the native layouts.

    Raises CheckpointError if `path` exists already or cannot be written, and for an architecture that the layout cannot
    hold; nothing half-written stays. A LoRA on the model is left out: merge it first, or write it with `write_lora`.
    """
    names = weight_shapes(model.config)
    tensors = {name: in_memory(x) for name, x in model.state_dict().items() if name in names}
    if any(not tensor.dtype.is_floating_point for tensor in tensors.values()):
        raise CheckpointError(
            "this model's base is stored in 8 bits, which no layout holds: write its LoRA with write_lora, and merge "
            "that into a model loaded in floating point"
        )
    return write_weights(model.config, tensors, path, layout, shard_bytes=shard_bytes)


def write_weights(
    config: TransformerConfig,
    tensors: Mapping[str, LazyTensor],
    path: str | os.PathLike[str],
    layout: Layout,
    *,
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
    latent_space: str = "",
) -> Path:
    """Write tensors, given under our names, one at a time; the most that is held is the largest of them.

    Dtypes stay as they are unless `dtype` is given or the layout is "native-mixed". `latent_space` is noted in every
    file, so that `open_weights` gives it again. Raises as `save_transformer`.
    """
    path = Path(path)
    if layout not in get_args(Layout):
        raise CheckpointError(f"layout '{layout}' is unknown: choose one of {', '.join(get_args(Layout))}")
    if layout != "pleinair":
        require_released_layout(config)
    if layout.startswith("native") and path.suffix != ".safetensors":
        raise CheckpointError(f"{path} does not end in .safetensors: the native layout is one file of that kind")
    if layout == "native-mixed":
        tensors = {name: tensor.to(mixed_dtype(name)) for name, tensor in tensors.items()}
    elif dtype is not None:
        tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    with appearing(path) as partial:
        _write(config, tensors, partial, layout, shard_bytes, latent_space)
    return path


def mixed_dtype(name: str) -> torch.dtype:
    """Dtype of our tensor `name` in the mixed layout: float32 for the input, timestep, text-input and output layers,
    for all norms and modulation tables; bfloat16 for the blocks' and text fusion's matrices, 98% of the weights.

    Deduced from the size of the released file, which these dtypes give to the byte but for its header.
    """
    return torch.float32 if name.startswith(_FLOAT32_STEMS) or name.endswith(_FLOAT32_PARTS) else torch.bfloat16


def weight_shapes(config: TransformerConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors that a model of this configuration consists of."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in Transformer(config).state_dict().items()}


@contextlib.contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """A place beside `path` to write a file or folder, renamed to `path` at the end; on an error nothing stays.

    Raises CheckpointError if `path` exists already or the file system refuses.
    """
    if path.exists():
        raise CheckpointError(f"{path} exists already: remove it or choose another name")
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        os.rename(partial, path)
    except OSError as failed:
        raise CheckpointError(f"{path} could not be written ({failed}): free space or choose another place") from failed
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        partial.unlink(missing_ok=True)


def _open_folder(folder: Path) -> Weights:
    given = folder
    if not (folder / CONFIG_FILE).exists() and (folder / "transformer").is_dir():
        folder = folder / "transformer"
    files = _weight_files(folder)
    tensors: dict[str, LazyTensor] = {}
    metadata: dict[str, str] = {}
    for file in files:
        found, notes = list_tensors(file)
        tensors |= found
        metadata |= notes
    document = read_json(folder / CONFIG_FILE)
    latents = str(document.get("latent_space") or metadata.get(LATENTS_KEY, ""))
    if files[0].name == PLEINAIR_FILE and document.get("_class_name") != DIFFUSERS_CLASS:
        return Weights(given, "pleinair", _config_beside(folder, document), tensors, files, latents)
    patch_size = json.loads(metadata[METADATA_KEY])["patch_size"] if METADATA_KEY in metadata else 2
    return Weights(given, "diffusers", config_from_diffusers(document, patch_size), tensors, files, latents)


def _weight_files(folder: Path) -> tuple[Path, ...]:
    if (folder / DIFFUSERS_INDEX).exists():
        names = sorted(set(read_json(folder / DIFFUSERS_INDEX)["weight_map"].values()))
        if any(Path(name).name != name for name in names):
            raise CheckpointError(f"{folder / DIFFUSERS_INDEX} names a file outside its folder: fetch the folder again")
        return tuple(folder / name for name in names)
    for name in (PLEINAIR_FILE, DIFFUSERS_FILE):
        if (folder / name).exists():
            return (folder / name,)
    for file in sorted(folder.iterdir()):
        refuse_pickle(file)
    raise CheckpointError(
        f"{folder} holds neither {PLEINAIR_FILE} nor {DIFFUSERS_FILE}: give a checkpoint folder, or the file itself"
    )


def _config_beside(folder: Path, document: Mapping[str, Any]) -> TransformerConfig:
    """From our config.json: the fields themselves, or under "transformer" beside those of other parts."""
    try:
        return from_document(TransformerConfig, document.get("transformer", document))
    except ConfigError as refused:
        raise CheckpointError(f"{folder / CONFIG_FILE} describes no transformer: {refused}") from refused


def _open_file(path: Path) -> Weights:
    stored, metadata = list_tensors(path)
    if any(".lora_" in name or ".lokr_" in name for name in stored):
        raise CheckpointError(
            f"{path} holds a LoRA, not a whole transformer: read it with pleinair.model.formats.read_lora"
        )
    bare = {name.removeprefix(NATIVE_PREFIX): tensor for name, tensor in stored.items()}
    tensors = {pleinair_name(name): tensor for name, tensor in bare.items()}
    tensors = {name: tensor.reshape(pleinair_shape(name, tensor.shape)) for name, tensor in tensors.items()}
    if METADATA_KEY in metadata:
        config = from_document(TransformerConfig, json.loads(metadata[METADATA_KEY]))
    else:
        config = config_from_shapes({name: tensor.shape for name, tensor in tensors.items()}, path)
    layout: Layout = "native-mixed"
    if tensors.keys() == bare.keys():
        layout = "pleinair"
    elif any(tensor.dtype != mixed_dtype(name) for name, tensor in tensors.items()):
        layout = "native"
    return Weights(path, layout, config, tensors, (path,), metadata.get(LATENTS_KEY, ""))


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises CheckpointError where there is none."""
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError) as damaged:
        raise CheckpointError(f"{path} cannot be read as JSON ({damaged}): restore it beside the weights") from damaged
    if not isinstance(document, dict):
        raise CheckpointError(f"{path} holds no JSON object: restore the transformer's configuration there")
    return document


def _check_names(weights: Weights) -> None:
    """Names are reported as the file spells them."""
    expected, tensors = weight_shapes(weights.config), weights.tensors
    spell = native_name if weights.layout.startswith("native") else str
    missing, unexpected = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    misshapen = [
        f"{spell(name)} {tensors[name].shape} instead of {expected[name]}"
        for name in sorted(expected.keys() & tensors.keys())
        if tensors[name].shape != expected[name]
    ]
    faults = []
    if missing:
        faults.append(f"{len(missing)} tensors missing ({listed([spell(name) for name in missing])})")
    if unexpected:
        names = sorted(spell(name) for name in unexpected)
        faults.append(
            f"{len(names)} tensors unexpected ({listed(names)}{nearest(names, [spell(name) for name in expected])})"
        )
    if misshapen:
        faults.append(f"{len(misshapen)} tensors of another shape ({listed(misshapen)})")
    if faults:
        raise CheckpointError(
            f"{weights.path} does not fit its configuration: {'; '.join(faults)}. Give the weights that belong to it"
        )


def _write(
    config: TransformerConfig,
    tensors: Mapping[str, LazyTensor],
    target: Path,
    layout: Layout,
    shard_bytes: int,
    latent_space: str,
) -> None:
    # "format" is what diffusers and transformers require of a file they load.
    metadata = {"format": "pt", METADATA_KEY: json.dumps(to_document(resolved(config)), sort_keys=True)}
    if latent_space:
        metadata[LATENTS_KEY] = latent_space
    if layout.startswith("native"):
        native = {native_name(name): x.reshape(native_shape(name, x.shape)) for name, x in tensors.items()}
        write_tensors(target, native, metadata)
        return
    target.mkdir()
    document = diffusers_config(config) if layout == "diffusers" else to_document(config)
    (target / CONFIG_FILE).write_text(json.dumps(document, indent=2, sort_keys=True) + "\n")
    if layout == "pleinair":
        write_tensors(target / PLEINAIR_FILE, tensors, metadata)
    else:
        _write_shards(target, tensors, metadata, shard_bytes)


def _write_shards(
    folder: Path, tensors: Mapping[str, LazyTensor], metadata: Mapping[str, str], shard_bytes: int
) -> None:
    """One file, or as many as keep each within `shard_bytes` and an index of which tensor is where."""
    shards: list[dict[str, LazyTensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.num_bytes > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.num_bytes
    if len(shards) == 1:
        write_tensors(folder / DIFFUSERS_FILE, tensors, metadata)
        return
    stem = DIFFUSERS_FILE.removesuffix(".safetensors")
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"{stem}-{number:05}-of-{len(shards):05}.safetensors"
        write_tensors(folder / file, shard, metadata)
        weight_map |= dict.fromkeys(shard, file)
    total = sum(tensor.num_bytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / DIFFUSERS_INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
