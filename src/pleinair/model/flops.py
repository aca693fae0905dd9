"""FLOPs of a forward pass, computed from the configuration: those of its matrix products, under every switch.

    2 * multiply-adds of   blocks (linear layers, scores, values) + text fusion + what leads in and out

A test compares them with a count of the real products. Norms, rotations and gates are not counted.
"""

from __future__ import annotations

from pleinair.model.transformer import TransformerConfig


def forward_flops(config: TransformerConfig, height: int, width: int, num_text_tokens: int) -> int:
    """FLOPs of one row, latents of `height` x `width` and a prompt of that many tokens: two for each multiply-add."""
    image, text = height * width // config.patch_size**2, num_text_tokens
    blocks = sum(_block(config, index, image, text) for index in range(config.num_layers))
    return 2 * (blocks + _text_fusion(config, text) + _ends(config, image, text) + _timestep(config))


def _block(config: TransformerConfig, index: int, image: int, text: int) -> int:
    """Multiply-adds of block `index`. In a last dual block text has keys and values only."""
    dim, length = config.width, config.timestep_tokens + text + image
    is_dual = index < config.dual_layers
    readers = image if is_dual and index == config.num_layers - 1 else length
    residuals = 1 if config.stream == "parallel" else 2
    of_reader = _query_weights(config) + 3 * dim * config.hidden_width + residuals * 2 * dim * config.laurel_rank
    has_projection = config.timestep == "adaln" and config.modulation == "mlp"
    modulation = (2 if is_dual else 1) * has_projection * config.modulation_vectors * dim * dim
    return readers * of_reader + length * _key_weights(config) + 2 * readers * length * dim + modulation


def _query_weights(config: TransformerConfig) -> int:
    """Weights that make queries, gates and outputs of one token."""
    dim = config.width
    queries = 2 * dim * config.q_rank if config.attention == "mla" else dim * dim
    return queries + (2 if config.gate else 1) * dim * dim


def _key_weights(config: TransformerConfig) -> int:
    """Weights that make keys and values of one token."""
    dim = config.width
    if config.attention == "gqa":
        return 2 * dim * config.num_kv_heads * config.head_dim
    content = config.num_heads * (config.head_dim - config.rotary_dim)
    return config.kv_rank * (dim + content + dim) + dim * config.rotary_dim


def _text_fusion(config: TransformerConfig, text: int) -> int:
    dim, layers = config.text_dim, config.num_text_layers
    weights = 3 * dim * dim + 2 * dim * config.text_num_kv_heads * (dim // config.text_num_heads)
    weights += 3 * dim * config.text_hidden_width
    refiner = text * weights + 2 * text * text * dim
    if config.text_features == "last":
        return config.num_refiner_text_blocks * refiner
    layerwise = text * (layers * weights + 2 * layers * layers * dim)
    mix = text * layers * dim
    return config.num_refiner_text_blocks * refiner + config.num_layerwise_text_blocks * layerwise + mix


def _ends(config: TransformerConfig, image: int, text: int) -> int:
    """Image tokens in and out, text tokens in."""
    return image * 2 * config.width * config.in_channels + text * config.width * (config.text_dim + config.width)


def _timestep(config: TransformerConfig) -> int:
    """The embedding, and the vectors or tokens that all blocks share."""
    if config.timestep == "none":
        return 0
    dim, shared = config.width, config.timestep_tokens
    if config.timestep == "adaln" and config.modulation == "bias":
        shared = config.modulation_vectors
    return dim * (config.timestep_dim + dim) + shared * dim * dim
