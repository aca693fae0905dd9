"""Transformer weights on disk, in three layouts that hold the same numbers.

    pleinair    folder: config.json + transformer.safetensors                        diffusers' tensor names
    diffusers   folder: config.json + diffusion_pytorch_model.safetensors (or shards)    what from_pretrained loads
    native      one .safetensors file in the official release's tensor names

Our module attributes carry diffusers' names, so only the native layout needs a map: names by prefix and part, and one
reshape, the blocks' modulation table (6, D) <-> (6 D,). A native file states no configuration; all sizes follow from
the shapes of its tensors, what does not (patch size, rotary settings, epsilon) from metadata that we write into every
file, and for files written elsewhere from the released values.

Nothing pickled is ever opened. A file or folder appears whole, by rename, or not at all.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pleinair.config import from_document, to_document
from pleinair.model.transformer import Transformer, TransformerConfig
from pleinair.records.errors import CheckpointError, ConfigError

Layout = Literal["pleinair", "diffusers", "native"]
State = dict[str, Tensor]

CONFIG_FILE = "config.json"
PLEINAIR_FILE = "transformer.safetensors"
DIFFUSERS_FILE = "diffusion_pytorch_model.safetensors"
DIFFUSERS_INDEX = DIFFUSERS_FILE + ".index.json"
DIFFUSERS_CLASS = "Krea2Transformer2DModel"
METADATA_KEY = "pleinair_transformer"
"""safetensors metadata: the whole TransformerConfig as JSON."""
NATIVE_PREFIX = "model.diffusion_model."
"""Some tools put it before every native name; it is dropped on reading and never written."""
PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
NAMED_KEYS = 5
"""Keys spelled out in a message before it only counts the rest."""

# (ours, native). Stems stand at the start of a name, parts anywhere after it.
_STEMS = (
    ("img_in.", "first."),
    ("time_embed.linear_1.", "tmlp.0."),
    ("time_embed.linear_2.", "tmlp.2."),
    ("time_mod_proj.", "tproj.1."),
    ("txt_in.norm.weight", "txtmlp.0.scale"),
    ("txt_in.linear_1.", "txtmlp.1."),
    ("txt_in.linear_2.", "txtmlp.3."),
    ("text_fusion.", "txtfusion."),
    ("transformer_blocks.", "blocks."),
    ("final_layer.linear.", "last.linear."),
    ("final_layer.norm.weight", "last.norm.scale"),
    ("final_layer.scale_shift_table", "last.modulation.lin"),
)
_PARTS = (
    (".attn.to_q.", ".attn.wq."),
    (".attn.to_k.", ".attn.wk."),
    (".attn.to_v.", ".attn.wv."),
    (".attn.to_out.0.", ".attn.wo."),
    (".attn.to_gate.", ".attn.gate."),
    (".attn.norm_q.weight", ".attn.qknorm.qnorm.scale"),
    (".attn.norm_k.weight", ".attn.qknorm.knorm.scale"),
    (".ff.", ".mlp."),
    (".norm1.weight", ".prenorm.scale"),
    (".norm2.weight", ".postnorm.scale"),
    (".scale_shift_table", ".mod.lin"),
)

# Keys of TransformerConfig and of diffusers' config.json.
_DIFFUSERS_KEYS = {
    "num_layers": "num_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "mlp_width": "intermediate_size",
    "in_channels": "in_channels",
    "timestep_dim": "timestep_embed_dim",
    "text_dim": "text_hidden_dim",
    "num_text_layers": "num_text_layers",
    "text_num_heads": "text_num_attention_heads",
    "text_num_kv_heads": "text_num_key_value_heads",
    "text_mlp_width": "text_intermediate_size",
    "num_layerwise_text_blocks": "num_layerwise_text_blocks",
    "num_refiner_text_blocks": "num_refiner_text_blocks",
    "rope_axes": "axes_dims_rope",
    "rope_theta": "rope_theta",
    "norm_eps": "norm_eps",
}


def load_transformer(
    path: str | os.PathLike[str], *, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
) -> Transformer:
    """The transformer stored at `path`, in any of the three layouts; a pipeline folder's `transformer/` is found.

    Every tensor keeps its stored dtype unless `dtype` is given. Raises CheckpointError naming what is missing,
    unexpected or of another shape, and for files that are not safetensors.
    """
    path = Path(path)
    if path.suffix.lower() in PICKLES:
        raise CheckpointError(
            f"{path} is a pickle file, which can run code when it is opened: convert it to .safetensors and load that"
        )
    if not path.exists():
        raise CheckpointError(f"{path} does not exist: give a .safetensors file or a folder that holds one")
    state, config = _read_folder(path, device) if path.is_dir() else _read_file(path, device)
    with torch.device("meta"):
        model = Transformer(config)
    _check_state(model, state, path)
    if dtype is not None:
        state = {name: tensor.to(dtype) for name, tensor in state.items()}
    model.load_state_dict(state, assign=True)
    return model


def save_transformer(model: Transformer, path: str | os.PathLike[str], layout: Layout = "pleinair") -> Path:
    """Write the transformer: a folder for "pleinair" and "diffusers", one .safetensors file for "native".

    Raises CheckpointError if `path` exists already or cannot be written; nothing half-written stays.
    """
    path = Path(path)
    if layout not in get_args(Layout):
        raise CheckpointError(f"layout '{layout}' is unknown: choose one of {', '.join(get_args(Layout))}")
    if layout == "native" and path.suffix != ".safetensors":
        raise CheckpointError(f"{path} does not end in .safetensors: the native layout is one file of that kind")
    if path.exists():
        raise CheckpointError(f"{path} exists already: remove it or choose another name")
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(model, partial, layout)
        os.rename(partial, path)
    except (OSError, SafetensorError) as failed:
        raise CheckpointError(f"{path} could not be written ({failed}): free space or choose another place") from failed
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        partial.unlink(missing_ok=True)
    return path


def native_from_pleinair(state: Mapping[str, Tensor]) -> State:
    """The same tensors under the official release's names and shapes."""
    return {_native_name(name): (x.reshape(-1) if _is_block_table(name) else x) for name, x in state.items()}


def pleinair_from_native(state: Mapping[str, Tensor]) -> State:
    """The inverse of `native_from_pleinair`; accepts the prefix some tools add. Unknown names pass through."""
    renamed = {_pleinair_name(name.removeprefix(NATIVE_PREFIX)): x for name, x in state.items()}
    # A table whose length is not a multiple of six stays as it is, and the shape check names it.
    return {n: (x.reshape(6, -1) if _is_block_table(n) and x.numel() % 6 == 0 else x) for n, x in renamed.items()}


def diffusers_config(config: TransformerConfig) -> dict[str, Any]:
    """The `config.json` of diffusers' class. Patch size has no key there: it belongs to the pipeline."""
    resolved = _resolved(config)
    values = {theirs: getattr(resolved, ours) for ours, theirs in _DIFFUSERS_KEYS.items()}
    return {"_class_name": DIFFUSERS_CLASS, "attention_head_dim": config.head_dim, **values}


def config_from_diffusers(document: Mapping[str, Any], patch_size: int = 2) -> TransformerConfig:
    """The configuration in diffusers' `config.json`; absent keys take diffusers' defaults, the released values."""
    values = {ours: document[theirs] for ours, theirs in _DIFFUSERS_KEYS.items() if theirs in document}
    head_dim = document.get("attention_head_dim", TransformerConfig().head_dim)
    width = head_dim * values.get("num_heads", TransformerConfig().num_heads)
    return from_document(TransformerConfig, {**values, "width": width, "patch_size": patch_size})


def config_from_shapes(state: Mapping[str, Tensor], path: Path) -> TransformerConfig:
    """The configuration that tensors under our names imply; what no shape tells takes the released values."""

    def size(name: str, dim: int) -> int:
        if name not in state or state[name].ndim <= dim:
            raise CheckpointError(f"{path} holds no tensor '{name}': this is not a K2 transformer")
        return state[name].shape[dim]

    def count(prefix: str) -> int:
        return len({name[len(prefix) :].split(".")[0] for name in state if name.startswith(prefix)})

    def heads(prefix: str, projection: str) -> int:
        return size(f"{prefix}.attn.{projection}.weight", 0) // size(f"{prefix}.attn.norm_q.weight", 0)

    block = "transformer_blocks.0"
    layerwise, refiner = "text_fusion.layerwise_blocks.", "text_fusion.refiner_blocks."
    text_block = (layerwise if count(layerwise) else refiner) + "0"
    try:
        return TransformerConfig(
            width=size("img_in.weight", 0),
            num_layers=count("transformer_blocks."),
            num_heads=heads(block, "to_q"),
            num_kv_heads=heads(block, "to_k"),
            mlp_width=size(f"{block}.ff.up.weight", 0),
            in_channels=size("img_in.weight", 1),
            timestep_dim=size("time_embed.linear_1.weight", 1),
            text_dim=size("txt_in.norm.weight", 0),
            num_text_layers=size("text_fusion.projector.weight", 1),
            text_num_heads=heads(text_block, "to_q"),
            text_num_kv_heads=heads(text_block, "to_k"),
            text_mlp_width=size(f"{text_block}.ff.up.weight", 0),
            num_layerwise_text_blocks=count(layerwise),
            num_refiner_text_blocks=count(refiner),
        )
    except ConfigError as refused:
        raise CheckpointError(f"{path} holds tensors that fit no K2 transformer: {refused}") from refused


def _native_name(name: str) -> str:
    for ours, native in _STEMS:
        if name.startswith(ours):
            name = native + name.removeprefix(ours)
            break
    for ours, native in _PARTS:
        name = name.replace(ours, native)
    return name


def _pleinair_name(name: str) -> str:
    for ours, native in _PARTS:
        name = name.replace(native, ours)
    for ours, native in _STEMS:
        if name.startswith(native):
            return ours + name.removeprefix(native)
    return name


def _is_block_table(name: str) -> bool:
    return name.startswith("transformer_blocks.") and name.endswith(".scale_shift_table")


def _resolved(config: TransformerConfig) -> TransformerConfig:
    """The same with every optional size written out."""
    return replace(
        config, mlp_width=config.hidden_width, text_mlp_width=config.text_hidden_width, rope_axes=config.axes
    )


def _read_folder(folder: Path, device: str | torch.device) -> tuple[State, TransformerConfig]:
    if not (folder / CONFIG_FILE).exists() and (folder / "transformer").is_dir():
        folder = folder / "transformer"
    names = _weight_files(folder)
    state: State = {}
    metadata: dict[str, str] = {}
    for name in names:
        tensors, found = _read_tensors(folder / name, device)
        state |= tensors
        metadata |= found
    if names == [PLEINAIR_FILE] and not _is_diffusers_config(folder):
        return state, _config_beside(folder)
    patch_size = json.loads(metadata[METADATA_KEY])["patch_size"] if METADATA_KEY in metadata else 2
    return state, config_from_diffusers(_read_json(folder / CONFIG_FILE), patch_size)


def _weight_files(folder: Path) -> list[str]:
    if (folder / DIFFUSERS_INDEX).exists():
        return sorted(set(_read_json(folder / DIFFUSERS_INDEX)["weight_map"].values()))
    for name in (PLEINAIR_FILE, DIFFUSERS_FILE):
        if (folder / name).exists():
            return [name]
    raise CheckpointError(
        f"{folder} holds neither {PLEINAIR_FILE} nor {DIFFUSERS_FILE}: give a checkpoint folder, or the file itself"
    )


def _is_diffusers_config(folder: Path) -> bool:
    return _read_json(folder / CONFIG_FILE).get("_class_name") == DIFFUSERS_CLASS


def _config_beside(folder: Path) -> TransformerConfig:
    """From our config.json: the fields themselves, or under "transformer" beside those of other parts."""
    document = _read_json(folder / CONFIG_FILE)
    try:
        return from_document(TransformerConfig, document.get("transformer", document))
    except ConfigError as refused:
        raise CheckpointError(f"{folder / CONFIG_FILE} describes no transformer: {refused}") from refused


def _read_file(path: Path, device: str | torch.device) -> tuple[State, TransformerConfig]:
    tensors, metadata = _read_tensors(path, device)
    state = pleinair_from_native(tensors)
    if METADATA_KEY in metadata:
        return state, from_document(TransformerConfig, json.loads(metadata[METADATA_KEY]))
    return state, config_from_shapes(state, path)


def _read_tensors(path: Path, device: str | torch.device) -> tuple[State, dict[str, str]]:
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as damaged:
        raise CheckpointError(
            f"{path} cannot be read as safetensors ({damaged}): it is damaged or of another format, fetch it again"
        ) from damaged


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError) as damaged:
        raise CheckpointError(f"{path} cannot be read as JSON ({damaged}): restore it beside the weights") from damaged
    if not isinstance(document, dict):
        raise CheckpointError(f"{path} holds no JSON object: restore the transformer's configuration there")
    return document


def _check_state(model: Transformer, state: State, path: Path) -> None:
    expected = model.state_dict()
    missing, unexpected = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    misshapen = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in sorted(expected.keys() & state.keys())
        if state[name].shape != expected[name].shape
    ]
    faults = [
        f"{len(names)} tensors {what} ({', '.join(names[:NAMED_KEYS])}{', ...' if len(names) > NAMED_KEYS else ''})"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
        if names
    ]
    if faults:
        raise CheckpointError(
            f"{path} does not fit its configuration: {'; '.join(faults)}. Give the weights that belong to it"
        )


def _write(model: Transformer, target: Path, layout: Layout) -> None:
    state: State = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    # "format" is what diffusers and transformers require of a file they load.
    metadata = {"format": "pt", METADATA_KEY: json.dumps(to_document(_resolved(model.config)), sort_keys=True)}
    if layout == "native":
        _save_readable(native_from_pleinair(state), target, metadata)
        return
    target.mkdir()
    document = diffusers_config(model.config) if layout == "diffusers" else to_document(model.config)
    (target / CONFIG_FILE).write_text(json.dumps(document, indent=2, sort_keys=True) + "\n")
    _save_readable(state, target / (DIFFUSERS_FILE if layout == "diffusers" else PLEINAIR_FILE), metadata)


def _save_readable(state: State, path: Path, metadata: dict[str, str]) -> None:
    save_file(state, path, metadata)
    path.chmod(0o644)  # safetensors writes for its owner alone
