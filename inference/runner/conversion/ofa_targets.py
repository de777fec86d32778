"""From a published OFA's tensors to the engine's: norms folded, projections fused, constants made once."""

import math
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name that every reader of torch code knows

from common.source import ConversionRefused
from inference.runner.conversion.ofa_config import MAX_DISTANCE_POSITIONS, Architecture
from inference.runner.conversion.ofa_tensors import EMBEDDING, OUTPUT, stage_blocks
from inference.runner.conversion.weights import Weights, is_finite
from inference.runner.conversion.writer import Target
from inference.runner.engines.ofa.config import EngineConfig
from inference.runner.engines.ofa.model import OfaModel
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


_NORM_EPSILON = 1e-5
_CONVOLUTION = 4  # dimensions of its weight
Recipe = Callable[[], Tensor]  # makes a tensor as float32


class Recipes:
    """How each tensor of the engine is made of the source's."""

    def __init__(self, weights: Weights, architecture: Architecture, config: EngineConfig, answers: list[int]) -> None:
        """Take a source whose tensors were checked."""
        self._weights = weights
        self._architecture = architecture
        self._config = config
        self._answers = answers
        self._scale = architecture.width**0.5 if architecture.scales_embedding else 1.0

    def all(self) -> dict[str, Recipe]:
        """By the engine's names; convolutions in torch's order of dimensions."""
        recipes: dict[str, Recipe] = {
            "words.weight": self._words,
            "text_kind": self._text_kind,
            "answers": self._answer_rows,
            "eyes.project.weight": lambda: self._get("encoder.image_proj.weight") * self._scale,
            "eyes.project.bias": self._picture_bias,
        }
        recipes |= self._norm("text_norm", "encoder.layernorm_embedding")
        recipes |= self._norm("eyes.norm", "encoder.patch_layernorm_embedding")
        recipes |= self._norm("prompt_norm", "decoder.layernorm_embedding")
        recipes |= self._norm("encoder.norm", "encoder.layer_norm")
        recipes |= self._norm("decoder.norm", "decoder.layer_norm")
        recipes |= self._resnet()
        for layer in range(self._architecture.encoder_layers):
            recipes |= self._layer("encoder", layer, self._architecture.encoder_heads)
        for layer in range(self._architecture.decoder_layers):
            recipes |= self._layer("decoder", layer, self._architecture.decoder_heads)
            recipes |= self._cross(f"decoder.layers.{layer}", self._architecture.decoder_heads)
        return recipes

    def _get(self, name: str) -> Tensor:
        return self._weights.get(name)

    def _words(self) -> Tensor:
        rows = self._get(EMBEDDING)[: self._config.vocabulary]
        return rows if self._scale == 1.0 else rows * self._scale  # the largest tensor: no copy for nothing

    def _text_kind(self) -> Tensor:
        if not self._architecture.has_kinds:
            return torch.zeros(self._architecture.width)
        return self._get("encoder.type_embedding.weight")[0]

    def _picture_bias(self) -> Tensor:
        bias = self._get("encoder.image_proj.bias") * self._scale
        return bias + self._get("encoder.type_embedding.weight")[1] if self._architecture.has_kinds else bias

    def _answer_rows(self) -> Tensor:
        return self._weights.rows(EMBEDDING if self._architecture.is_tied else OUTPUT, self._answers)

    def _norm(self, name: str, source: str) -> dict[str, Recipe]:
        return {f"{name}.{part}": partial(self._get, f"{source}.{part}") for part in ("weight", "bias")}

    def _linear(self, name: str, source: str) -> dict[str, Recipe]:
        return self._norm(name, source)  # both are a weight and a bias

    def _resnet(self) -> dict[str, Recipe]:
        images = "encoder.embed_images."
        recipes = self._convolution("eyes.resnet.stem", f"{images}conv1", f"{images}bn1")
        for number, (prefix, reshapes) in enumerate(stage_blocks(self._architecture)):
            block = f"eyes.resnet.blocks.{number}."
            for part in (1, 2, 3):
                recipes |= self._convolution(f"{block}conv{part}", f"{prefix}conv{part}", f"{prefix}bn{part}")
            if reshapes:
                recipes |= self._convolution(f"{block}shortcut", f"{prefix}downsample.0", f"{prefix}downsample.1")
        return recipes

    def _convolution(self, name: str, convolution: str, norm: str) -> dict[str, Recipe]:
        """A convolution with the batch norm behind it folded in."""

        def gain() -> Tensor:
            variance = self._get(f"{norm}.running_var").double()
            return self._get(f"{norm}.weight").double() / torch.sqrt(variance + _NORM_EPSILON)

        def weight() -> Tensor:
            return (self._get(f"{convolution}.weight").double() * gain()[:, None, None, None]).float()

        def bias() -> Tensor:
            mean = self._get(f"{norm}.running_mean").double()
            return (self._get(f"{norm}.bias").double() - mean * gain()).float()

        return {f"{name}.weight": weight, f"{name}.bias": bias}

    def _layer(self, side: str, layer: int, heads: int) -> dict[str, Recipe]:
        name = source = f"{side}.layers.{layer}"
        recipes = self._norm(f"{name}.attention_norm", f"{source}.self_attn_layer_norm")
        recipes |= self._norm(f"{name}.attention_after", f"{source}.self_attn_mid_layer_norm")
        recipes |= self._norm(f"{name}.feed_norm", f"{source}.final_layer_norm")
        recipes |= self._norm(f"{name}.feed.norm", f"{source}.ffn_layer_norm")
        recipes |= self._linear(f"{name}.feed.widen", f"{source}.fc1")
        recipes |= self._linear(f"{name}.feed.narrow", f"{source}.fc2")
        recipes |= self._attention_out(f"{name}.attention", f"{source}.self_attn", heads)
        for part in ("weight", "bias"):
            recipes[f"{name}.attention.qkv.{part}"] = partial(
                self._fused, f"{source}.self_attn", ("q_proj", "k_proj", "v_proj"), part, heads
            )
        return recipes

    def _cross(self, name: str, heads: int) -> dict[str, Recipe]:
        source = f"{name}.cross_attn"
        recipes = self._norm(f"{name}.cross_norm", f"{source}_layer_norm")
        recipes |= self._norm(f"{name}.cross_after", f"{source}_mid_layer_norm")
        recipes |= self._attention_out(f"{name}.cross", source, heads)
        for part in ("weight", "bias"):
            recipes[f"{name}.cross.query.{part}"] = partial(self._fused, source, ("q_proj",), part, heads)
            recipes[f"{name}.cross.key_value.{part}"] = partial(self._fused, source, ("k_proj", "v_proj"), part, heads)
        return recipes

    def _fused(self, source: str, projections: tuple[str, ...], part: str, heads: int) -> Tensor:
        """Projections one above the other, the query's with the scale of the scores."""
        scale = (self._architecture.width / heads * self._architecture.scale_factor) ** -0.5
        return torch.cat(
            [self._get(f"{source}.{name}.{part}") * (scale if name == "q_proj" else 1.0) for name in projections]
        )

    def _attention_out(self, name: str, source: str, heads: int) -> dict[str, Recipe]:
        """The output projection, its columns scaled by the scale of the head that they come from."""

        def weight() -> Tensor:
            scale = self._get(f"{source}.c_attn").repeat_interleave(self._architecture.width // heads)
            return self._get(f"{source}.out_proj.weight") * scale

        return {f"{name}.out.weight": weight, f"{name}.out.bias": partial(self._get, f"{source}.out_proj.bias")}


def module_targets(recipes: Mapping[str, Recipe], config: EngineConfig, dtype: torch.dtype) -> list[Target]:
    """The tensors of the engine's module, in its order.

    Raises:
        RuntimeError: a tensor has no recipe, or a recipe no tensor.
    """
    with torch.device("meta"):
        expected = OfaModel(config).state_dict()
    if set(expected) != set(recipes):
        raise RuntimeError(f"recipes and module differ: {sorted(set(expected) ^ set(recipes))[:5]}")
    return [_target(name, tuple(tensor.shape), dtype, recipes[name]) for name, tensor in expected.items()]


def _target(name: str, shape: tuple[int, ...], dtype: torch.dtype, recipe: Recipe) -> Target:
    is_convolution = len(shape) == _CONVOLUTION

    def make() -> Tensor:
        made = recipe().to(dtype)
        if not is_finite(made):
            message = f"tensor {name} is not finite once its norms are folded in or its precision is {dtype}"
            raise ConversionRefused("WEIGHTS_BROKEN", message)
        return made.permute(0, 2, 3, 1) if is_convolution else made  # channels last, as the engine reads it

    if is_convolution:
        shape = (shape[0], shape[2], shape[3], shape[1])
    return Target(name, shape, dtype, make)
