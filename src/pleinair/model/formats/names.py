"""The key map between our names, which are diffusers', and those of the official release; and what to say of others.

    transformer_blocks.3.attn.to_q.weight  <->  blocks.3.attn.wq.weight      one to one, prefix by prefix, part by part

Names are all that differs, but for one reshape: the blocks' modulation table is (6, D) here and (6 D,) there.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence

from torch import Tensor

NATIVE_PREFIX = "model.diffusion_model."
"""Some tools put it before every native name; it is dropped on reading and never written."""
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


def native_name(name: str) -> str:
    """The official release's name of one of our tensors."""
    for ours, native in _STEMS:
        if name.startswith(ours):
            name = native + name.removeprefix(ours)
            break
    for ours, native in _PARTS:
        name = name.replace(ours, native)
    return name


def pleinair_name(name: str) -> str:
    """Our name of one of the official release's tensors; a name that is none passes through."""
    for ours, native in _PARTS:
        name = name.replace(native, ours)
    for ours, native in _STEMS:
        if name.startswith(native):
            return ours + name.removeprefix(native)
    return name


def is_block_table(name: str) -> bool:
    """Whether our `name` is a block's modulation table, the only tensor of another shape in the native layout."""
    return name.startswith("transformer_blocks.") and name.endswith(".scale_shift_table")


def native_shape(name: str, shape: Sequence[int]) -> tuple[int, ...]:
    """Shape in the native layout of our tensor `name`."""
    return (shape[0] * shape[1],) if is_block_table(name) else tuple(shape)


def pleinair_shape(name: str, shape: Sequence[int]) -> tuple[int, ...]:
    """The inverse. A table whose length is not a multiple of six keeps its shape, and a later check names it."""
    is_flat = is_block_table(name) and len(shape) == 1 and shape[0] % 6 == 0
    return (6, shape[0] // 6) if is_flat else tuple(shape)


def native_from_pleinair(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under the official release's names and shapes."""
    return {native_name(name): x.reshape(native_shape(name, x.shape)) for name, x in state.items()}


def pleinair_from_native(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `native_from_pleinair`; accepts the prefix some tools add. Unknown names pass through."""
    renamed = {pleinair_name(name.removeprefix(NATIVE_PREFIX)): x for name, x in state.items()}
    return {name: x.reshape(pleinair_shape(name, x.shape)) for name, x in renamed.items()}


def listed(names: Sequence[str]) -> str:
    """The first few names, with dots where there are more."""
    return ", ".join(names[:NAMED_KEYS]) + (", ..." if len(names) > NAMED_KEYS else "")


def nearest(names: Sequence[str], known: Collection[str]) -> str:
    """A hint for names nobody knows: for the first that is spelled nearly like a known one, that one; or nothing."""
    for name in names[:NAMED_KEYS]:
        if found := difflib.get_close_matches(name, known, n=1, cutoff=0.75):
            return f"; '{name}' is nearest to '{found[0]}'"
    return ""
