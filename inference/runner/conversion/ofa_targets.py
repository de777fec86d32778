"""Computes the engine's tensors from a published OFA's: norms folded, projections fused, positions precomputed."""

import math
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's conventional alias

from common.source import ConversionRefused
from inference.runner.conversion.ofa_config import MAX_DISTANCE_POSITIONS, Architecture
from inference.runner.conversion.ofa_plan import EMBEDDING, OUTPUT, list_blocks
from inference.runner.conversion.tensor_content import NEGATIVE_VARIANCE, NORM_EPSILON
from inference.runner.conversion.tensor_io import OutputTensor, TensorReader, is_finite
from inference.runner.conversion.tensor_location import refuse
from inference.runner.engines.ofa.config import EngineConfig, stored_name
from inference.runner.engines.ofa.model import OfaModel
from inference.runner.engines.ofa.positions import PREFIX


def position_targets(reader: TensorReader, architecture: Architecture, config: EngineConfig) -> list[OutputTensor]:
    """Compute the tensors of `PositionTables`, which are small, immediately.

    Raises:
        ConversionRefused: a table is not finite.
    """
    tables = _compute_tables(reader, architecture, config)
    for name, tensor in tables.items():
        if tensor.is_floating_point() and not is_finite(tensor):
            raise ConversionRefused("WEIGHTS_BROKEN", f"the position table {name} is not finite")
    return [
        OutputTensor(f"{PREFIX}{name}", tuple(tensor.shape), tensor.dtype, lambda tensor=tensor: tensor)  # type: ignore[misc]
        for name, tensor in tables.items()
    ]


def _compute_tables(reader: TensorReader, architecture: Architecture, config: EngineConfig) -> dict[str, Tensor]:
    text, decoded, cells = config.max_text_tokens, config.max_decoder_tokens, _grid_cells(architecture, config)
    pictures = _apply_norm(reader, "encoder.image_pos_ln", reader.get("encoder.embed_image_positions.weight")[cells])
    text_positions = _apply_norm(reader, "encoder.pos_ln", reader.get("encoder.embed_positions.weight")[:text])
    source = torch.cat([pictures, text_positions])
    target = _apply_norm(reader, "decoder.pos_ln", reader.get("decoder.embed_positions.weight")[:decoded])
    encoder_scale = (architecture.width / architecture.encoder_heads * architecture.scale_factor) ** -0.5
    decoder_scale = (architecture.width / architecture.decoder_heads * architecture.scale_factor) ** -0.5
    image_index = _read_index(reader, "encoder.image_rp_bucket", image_distances(architecture.image_buckets))
    return {
        "encoder_query": _apply_linear(reader, "encoder.pos_q_linear", source) * encoder_scale,
        "encoder_key": _apply_linear(reader, "encoder.pos_k_linear", source),
        "decoder_query": _apply_linear(reader, "decoder.self_pos_q_linear", target) * decoder_scale,
        "decoder_key": _apply_linear(reader, "decoder.self_pos_k_linear", target),
        "cross_query": _apply_linear(reader, "decoder.cross_pos_q_linear", target) * decoder_scale,
        "cross_key": _apply_linear(reader, "decoder.cross_pos_k_linear", source),
        "encoder_text": _stack_tables(reader, "encoder.token", architecture.encoder_layers, architecture),
        "encoder_image": _stack_tables(reader, "encoder.image", architecture.encoder_layers, architecture),
        "decoder_text": _stack_tables(reader, "decoder.token", architecture.decoder_layers, architecture),
        "encoder_text_index": _read_text_index(reader, "encoder", architecture)[:text, :text].contiguous(),
        "encoder_image_index": image_index[cells][:, cells].contiguous(),
        "decoder_text_index": _read_text_index(reader, "decoder", architecture)[:decoded, :decoded].contiguous(),
    }


def _grid_cells(architecture: Architecture, config: EngineConfig) -> Tensor:
    """(patches,) int64: cell of each patch in the learned grid, whose cell 0 is not a position."""
    side = torch.arange(config.patches_a_side)
    return (side[:, None] * architecture.image_buckets + side[None, :] + 1).flatten()


def _apply_norm(reader: TensorReader, norm: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], reader.get(f"{norm}.weight"), reader.get(f"{norm}.bias"))


def _apply_linear(reader: TensorReader, linear: str, x: Tensor) -> Tensor:
    return F.linear(x, reader.get(f"{linear}.weight"), reader.get(f"{linear}.bias"))


def _stack_tables(reader: TensorReader, kind: str, layers: int, architecture: Architecture) -> Tensor:
    """(tables, distances, heads)."""
    tables = 1 if architecture.shares_bias else layers
    return torch.stack([reader.get(f"{kind}_rel_pos_table_list.{table}.weight") for table in range(tables)])


def _read_text_index(reader: TensorReader, side: str, architecture: Architecture) -> Tensor:
    return _read_index(reader, f"{side}.token_rp_bucket", text_distances(architecture.text_buckets))


def _read_index(reader: TensorReader, name: str, computed: Tensor) -> Tensor:
    """Return the source's index table if it has one, else the computed one.

    The two may differ, because the logarithm in `text_distances` rounds differently on other machines.

    Raises:
        ConversionRefused: an index is outside of its table.
    """
    if not reader.has(name):
        return computed.to(torch.int32)
    found = reader.get_index(name)
    if int(found.min()) < 0 or int(found.max()) > int(computed.max()):
        message = f"tensor {name} holds {int(found.min())} to {int(found.max())}, supported: 0 to {int(computed.max())}"
        raise ConversionRefused("WEIGHTS_BROKEN", message)
    return found.to(torch.int32)


def text_distances(buckets: int) -> Tensor:
    """Row of the relative-position table for two text positions.

    Distances below half of the buckets have a row each, larger ones share rows in logarithmic steps. From OFA's
    `make_token_bucket_position` (https://github.com/OFA-Sys/OFA/blob/main/models/ofa/unify_transformer.py).

    Returns:
        (1024, 1024) int64.
    """
    half, last = buckets // 2, MAX_DISTANCE_POSITIONS - 1
    positions = torch.arange(MAX_DISTANCE_POSITIONS)
    distance = positions[:, None] - positions[None, :]
    far = torch.where((distance < half) & (distance > -half), half - 1, distance.abs())
    steps = torch.ceil(torch.log(far / half) / math.log(last / half) * (half - 1)).int() + half
    return torch.where(far <= half, distance, steps * distance.sign()).long() + buckets - 1


def image_distances(buckets: int) -> Tensor:
    """Row of the relative-position table for two cells of the picture grid; cell 0 is not a position.

    From OFA's `make_image_bucket_position` (same file as `text_distances`).

    Returns:
        (buckets² + 1, buckets² + 1) int64.
    """
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


_CONVOLUTION = 4  # dimensions of its weight
Recipe = Callable[[], Tensor]  # computes a tensor as float32


class TensorRecipes:
    """Recipes for all parameters of `OfaModel` from the source's tensors."""

    def __init__(
        self, reader: TensorReader, architecture: Architecture, config: EngineConfig, answers: list[int]
    ) -> None:
        """Use a source whose tensors were checked; `answers` are the token ids of `answer_embeddings`."""
        self._reader = reader
        self._architecture = architecture
        self._config = config
        self._answers = answers
        self._scale = architecture.width**0.5 if architecture.scales_embedding else 1.0

    def build(self) -> dict[str, Recipe]:
        """Return recipes by parameter name; convolutions in torch's order of dimensions."""
        recipes: dict[str, Recipe] = {
            "token_embedding.weight": self._token_embedding,
            "text_type_embedding": self._text_type_embedding,
            "answer_embeddings": self._answer_embeddings,
            "image_encoder.project.weight": lambda: self._get("encoder.image_proj.weight") * self._scale,
            "image_encoder.project.bias": self._picture_bias,
        }
        recipes |= self._norm("text_norm", "encoder.layernorm_embedding")
        recipes |= self._norm("image_encoder.norm", "encoder.patch_layernorm_embedding")
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
        return self._reader.get(name)

    def _token_embedding(self) -> Tensor:
        rows = self._get(EMBEDDING)[: self._config.vocabulary]
        return rows if self._scale == 1.0 else rows * self._scale  # avoids a copy of the largest tensor

    def _text_type_embedding(self) -> Tensor:
        if not self._architecture.has_type_embedding:
            return torch.zeros(self._architecture.width)
        return self._get("encoder.type_embedding.weight")[0]

    def _picture_bias(self) -> Tensor:
        bias = self._get("encoder.image_proj.bias") * self._scale
        return bias + self._get("encoder.type_embedding.weight")[1] if self._architecture.has_type_embedding else bias

    def _answer_embeddings(self) -> Tensor:
        return self._reader.get_rows(EMBEDDING if self._architecture.is_tied else OUTPUT, self._answers)

    def _norm(self, name: str, source: str) -> dict[str, Recipe]:
        return {f"{name}.{part}": partial(self._get, f"{source}.{part}") for part in ("weight", "bias")}

    def _linear(self, name: str, source: str) -> dict[str, Recipe]:
        return self._norm(name, source)  # both have a weight and a bias

    def _resnet(self) -> dict[str, Recipe]:
        images = "encoder.embed_images."
        recipes = self._convolution("image_encoder.resnet.stem", f"{images}conv1", f"{images}bn1")
        for number, (prefix, reshapes) in enumerate(list_blocks(self._architecture)):
            block = f"image_encoder.resnet.blocks.{number}."
            for part in (1, 2, 3):
                recipes |= self._convolution(f"{block}conv{part}", f"{prefix}conv{part}", f"{prefix}bn{part}")
            if reshapes:
                recipes |= self._convolution(f"{block}shortcut", f"{prefix}downsample.0", f"{prefix}downsample.1")
        return recipes

    def _convolution(self, name: str, convolution: str, norm: str) -> dict[str, Recipe]:
        """A convolution with the following batch norm folded in."""

        def gain() -> Tensor:
            variance = self._get(f"{norm}.running_var").double()
            if bool((variance <= -NORM_EPSILON).any()):
                refuse(f"tensor {norm}.running_var {NEGATIVE_VARIANCE}")
            return self._get(f"{norm}.weight").double() / torch.sqrt(variance + NORM_EPSILON)

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
                self._fuse, f"{source}.self_attn", ("q_proj", "k_proj", "v_proj"), part, heads
            )
        return recipes

    def _cross(self, name: str, heads: int) -> dict[str, Recipe]:
        source = f"{name}.cross_attn"
        recipes = self._norm(f"{name}.cross_norm", f"{source}_layer_norm")
        recipes |= self._norm(f"{name}.cross_after", f"{source}_mid_layer_norm")
        recipes |= self._attention_out(f"{name}.cross", source, heads)
        for part in ("weight", "bias"):
            recipes[f"{name}.cross.query.{part}"] = partial(self._fuse, source, ("q_proj",), part, heads)
            recipes[f"{name}.cross.key_value.{part}"] = partial(self._fuse, source, ("k_proj", "v_proj"), part, heads)
        return recipes

    def _fuse(self, source: str, projections: tuple[str, ...], part: str, heads: int) -> Tensor:
        """Concatenate projections; the query's includes the scale of the scores."""
        scale = (self._architecture.width / heads * self._architecture.scale_factor) ** -0.5
        return torch.cat(
            [self._get(f"{source}.{name}.{part}") * (scale if name == "q_proj" else 1.0) for name in projections]
        )

    def _attention_out(self, name: str, source: str, heads: int) -> dict[str, Recipe]:
        """The output projection; each column includes the scale of its head."""

        def weight() -> Tensor:
            scale = self._get(f"{source}.c_attn").repeat_interleave(self._architecture.width // heads)
            return self._get(f"{source}.out_proj.weight") * scale

        return {f"{name}.out.weight": weight, f"{name}.out.bias": partial(self._get, f"{source}.out_proj.bias")}


def module_targets(recipes: Mapping[str, Recipe], config: EngineConfig, dtype: torch.dtype) -> list[OutputTensor]:
    """Return the parameters of `OfaModel` as output tensors, in the module's order.

    Raises:
        RuntimeError: recipes and parameters differ.
    """
    with torch.device("meta"):
        expected = OfaModel(config).state_dict()
    if set(expected) != set(recipes):
        raise RuntimeError(f"recipes and module differ: {sorted(set(expected) ^ set(recipes))[:5]}")
    return [_make_target(name, tuple(tensor.shape), dtype, recipes[name]) for name, tensor in expected.items()]


def _make_target(name: str, shape: tuple[int, ...], dtype: torch.dtype, recipe: Recipe) -> OutputTensor:
    is_convolution = len(shape) == _CONVOLUTION

    def compute() -> Tensor:
        tensor = recipe().to(dtype)
        if not is_finite(tensor):
            message = f"tensor {name} is not finite after its norms are folded in and it is converted to {dtype}"
            raise ConversionRefused("WEIGHTS_BROKEN", message)
        return tensor.permute(0, 2, 3, 1) if is_convolution else tensor  # channels last, as the engine reads it

    if is_convolution:
        shape = (shape[0], shape[2], shape[3], shape[1])
    return OutputTensor(stored_name(name), shape, dtype, compute)
