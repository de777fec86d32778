"""The tables that position biases are made of: all that depends on neither picture nor text."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name that every reader of torch code knows

from common.source import ConversionRefused
from inference.runner.conversion.ofa_config import MAX_DISTANCE_POSITIONS, Architecture
from inference.runner.conversion.weights import Weights, is_finite
from inference.runner.conversion.writer import Target
from inference.runner.engines.ofa.config import EngineConfig
from inference.runner.engines.ofa.positions import PREFIX


def position_targets(weights: Weights, architecture: Architecture, config: EngineConfig) -> list[Target]:
    """Make the tables of `PositionTables`; they are small, so all at once."""
    made = _tables(weights, architecture, config)
    for name, tensor in made.items():
        if tensor.is_floating_point() and not is_finite(tensor):
            raise ConversionRefused("WEIGHTS_BROKEN", f"the position table {name} is not finite")
    return [
        Target(f"{PREFIX}{name}", tuple(tensor.shape), tensor.dtype, lambda tensor=tensor: tensor)  # type: ignore[misc]
        for name, tensor in made.items()
    ]


def _tables(weights: Weights, architecture: Architecture, config: EngineConfig) -> dict[str, Tensor]:
    text, read, patches = config.max_text_tokens, config.max_decoder_tokens, _patch_cells(architecture, config)
    pictures = _normed(weights, "encoder.image_pos_ln", weights.get("encoder.embed_image_positions.weight")[patches])
    words = _normed(weights, "encoder.pos_ln", weights.get("encoder.embed_positions.weight")[:text])
    source = torch.cat([pictures, words])
    target = _normed(weights, "decoder.pos_ln", weights.get("decoder.embed_positions.weight")[:read])
    encoder_scale = (architecture.width / architecture.encoder_heads * architecture.scale_factor) ** -0.5
    decoder_scale = (architecture.width / architecture.decoder_heads * architecture.scale_factor) ** -0.5
    image_index = _index(weights, "encoder.image_rp_bucket", image_distances(architecture.image_buckets))
    return {
        "encoder_query": _projected(weights, "encoder.pos_q_linear", source) * encoder_scale,
        "encoder_key": _projected(weights, "encoder.pos_k_linear", source),
        "decoder_query": _projected(weights, "decoder.self_pos_q_linear", target) * decoder_scale,
        "decoder_key": _projected(weights, "decoder.self_pos_k_linear", target),
        "cross_query": _projected(weights, "decoder.cross_pos_q_linear", target) * decoder_scale,
        "cross_key": _projected(weights, "decoder.cross_pos_k_linear", source),
        "encoder_text": _stacked(weights, "encoder.token", architecture.encoder_layers, architecture),
        "encoder_image": _stacked(weights, "encoder.image", architecture.encoder_layers, architecture),
        "decoder_text": _stacked(weights, "decoder.token", architecture.decoder_layers, architecture),
        "encoder_text_index": _text_index(weights, "encoder", architecture)[:text, :text].contiguous(),
        "encoder_image_index": image_index[patches][:, patches].contiguous(),
        "decoder_text_index": _text_index(weights, "decoder", architecture)[:read, :read].contiguous(),
    }


def _patch_cells(architecture: Architecture, config: EngineConfig) -> Tensor:
    """(patches,) int64: cell of each patch in the learned grid, whose cell 0 is no place."""
    side = torch.arange(config.patches_a_side)
    return (side[:, None] * architecture.image_buckets + side[None, :] + 1).flatten()


def _normed(weights: Weights, norm: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weights.get(f"{norm}.weight"), weights.get(f"{norm}.bias"))


def _projected(weights: Weights, linear: str, x: Tensor) -> Tensor:
    return F.linear(x, weights.get(f"{linear}.weight"), weights.get(f"{linear}.bias"))


def _stacked(weights: Weights, kind: str, layers: int, architecture: Architecture) -> Tensor:
    """(tables, distances, heads)."""
    tables = 1 if architecture.shares_bias else layers
    return torch.stack([weights.get(f"{kind}_rel_pos_table_list.{table}.weight") for table in range(tables)])


def _text_index(weights: Weights, side: str, architecture: Architecture) -> Tensor:
    return _index(weights, f"{side}.token_rp_bucket", text_distances(architecture.text_buckets))


def _index(weights: Weights, name: str, made: Tensor) -> Tensor:
    """The source's index table if it has one, for the logarithm in it may have been rounded elsewhere.

    Raises:
        ConversionRefused: it points outside its table.
    """
    if not weights.has(name):
        return made.to(torch.int32)
    found = weights.index(name)
    if int(found.min()) < 0 or int(found.max()) > int(made.max()):
        message = f"tensor {name} holds {int(found.min())} to {int(found.max())}, supported: 0 to {int(made.max())}"
        raise ConversionRefused("WEIGHTS_BROKEN", message)
    return found.to(torch.int32)


def text_distances(buckets: int) -> Tensor:
    """(1024, 1024) int64: row of the distance table; near distances one by one, far ones in logarithmic steps."""
    half, last = buckets // 2, MAX_DISTANCE_POSITIONS - 1
    positions = torch.arange(MAX_DISTANCE_POSITIONS)
    distance = positions[:, None] - positions[None, :]
    far = torch.where((distance < half) & (distance > -half), half - 1, distance.abs())
    steps = torch.ceil(torch.log(far / half) / math.log(last / half) * (half - 1)).int() + half
    return torch.where(far <= half, distance, steps * distance.sign()).long() + buckets - 1


def image_distances(buckets: int) -> Tensor:
    """(buckets² + 1, buckets² + 1) int64: row of the distance table for two cells; cell 0 is no place."""
    side = 2 * buckets - 1
    cells = torch.arange(buckets**2)
    rows, columns = cells // buckets, cells % buckets
    down = rows[:, None] - rows[None, :] + buckets - 1
    right = columns[:, None] - columns[None, :] + buckets - 1
    index = torch.zeros(buckets**2 + 1, buckets**2 + 1, dtype=torch.int64)
    index[1:, 1:] = down * side + right
    index[0, :] = side**2
    index[:, 0] = side**2 + 1
    index[0, 0] = side**2 + 2
    return index
