"""Estimates the memory of a sealed OFA bundle and opens it. Weights are memory-mapped, not copied."""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from common.bundle import Bundle
from common.durable import read_bounded
from common.json_load import load_json
from inference.runner.device import default_precision, set_threads, torch_device, torch_dtype
from inference.runner.engines.base import BundleRefused, LoadOptions, MemoryEstimate, Progress
from inference.runner.engines.kernels import load_kernels
from inference.runner.engines.linear import report_obstacle
from inference.runner.engines.ofa.attention import can_use_kernels
from inference.runner.engines.ofa.config import (
    ADDED_WORDS_NAME,
    MERGES_NAME,
    VOCABULARY_NAME,
    WEIGHTS_NAME,
    EngineConfig,
    read_config,
    stored_name,
)
from inference.runner.engines.ofa.engine import OfaEngine, choose_call_rows
from inference.runner.engines.ofa.gpu import PICTURE_SIZES, ROW_SIZES, choose_text_sizes
from inference.runner.engines.ofa.model import OfaModel
from inference.runner.engines.ofa.positions import (
    BIAS_BUFFER_BYTES,
    PREFIX,
    PositionBiases,
    round_up_gpu_tokens,
    select_tables,
)
from inference.runner.engines.ofa.tokenizer import Tokenizer

_PICTURES = {"cpu": 1, "cuda": PICTURE_SIZES[-1]}  # in one call of the ResNet
# Workspaces of cuBLAS and cuBLASLt (32 MiB each on Hopper), and kernels, which are loaded on first use.
_LIBRARY_BYTES = {"cpu": 0, "cuda": 256 << 20}
_GRAPH_BYTES = 4 << 20  # of one captured call
_STEM_CHANNELS = 256  # of the ResNet's widest activations, at a quarter of the picture's side
_LIVE_TENSORS = 4  # activations of one size that a layer holds at once
_WIDEST_TENSORS = {"cpu": 1, "cuda": 2}  # of the widest: a CPU computes its norm in parts
_STORED_BYTES = {"F32": 4, "BF16": 2, "I32": 4}  # dtypes that `convert` writes


def estimate_ofa_memory(folder: Path, _bundle: Bundle, options: LoadOptions) -> MemoryEstimate:
    """Estimate a load: the size of the weights is exact, working memory follows the engine's largest call.

    Raises:
        ValueError, KeyError: the bundle is not in the layout that `convert` writes.
        OSError: a file cannot be read.
    """
    kind = options.device.partition(":")[0]
    float_bytes = torch_dtype(options.precision or default_precision(options.device)).itemsize
    config = read_config(folder)
    working = _bias_bytes(config, float_bytes, kind) + _call_bytes(config, float_bytes, kind) + _LIBRARY_BYTES[kind]
    if kind == "cuda":
        working += _fixed_bytes(config, float_bytes)
    return MemoryEstimate(count_weight_bytes(folder / WEIGHTS_NAME, float_bytes), working)


def count_weight_bytes(path: Path, float_bytes: int) -> int:
    """Bytes of a bundle's tensors once loaded; reads the header alone.

    Args:
        path: a safetensors file.
        float_bytes: size of one parameter at the precision of the computation. Position tables keep their stored size.

    Raises:
        ValueError: the file is not valid safetensors.
        KeyError: a tensor has a dtype that `convert` does not write.
        OSError: the file cannot be read.
    """
    total = 0
    try:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118  not a mapping
                tensor = file.get_slice(name)
                stored = _STORED_BYTES[tensor.get_dtype()]
                total += math.prod(tensor.get_shape()) * (stored if name.startswith(PREFIX) else float_bytes)
    except SafetensorError as error:
        raise ValueError(f"{path.name} is not valid safetensors") from error
    return total


def _bias_bytes(config: EngineConfig, float_bytes: int, kind: str) -> int:
    """Attention biases: all of the decoder's, and the encoder's: all layers' on a GPU, else a buffer and its tables."""
    text, tokens = config.max_text_tokens, config.patches + config.max_text_tokens
    decoder = config.decoder_heads * (config.decoder_layers * text * text + text * tokens)
    if kind == "cuda":
        encoder = config.encoder_layers * config.encoder_heads * round_up_gpu_tokens(tokens) ** 2
        return (encoder + decoder) * float_bytes
    head = tokens * tokens * float_bytes
    layer = config.encoder_heads * head
    product = layer if float_bytes == torch.float32.itemsize else 0
    # A CPU keeps picture biases by row and column difference: (2 side - 1)², less than 4 × patches values.
    distances = config.encoder_heads * (4 * config.patches + text * text) * float_bytes
    tables = config.encoder_layers * distances
    return max(head, min(layer, BIAS_BUFFER_BYTES)) + product + tables + decoder * float_bytes


def _fixed_bytes(config: EngineConfig, float_bytes: int) -> int:
    """Inputs of a GPU's calls, and what their graphs take."""
    features = ROW_SIZES[-1] * config.patches * config.width * float_bytes
    pixels = PICTURE_SIZES[-1] * config.image_size**2 * 3
    graphs = len(PICTURE_SIZES) + len(ROW_SIZES) * len(choose_text_sizes(config))
    return features + pixels + graphs * _GRAPH_BYTES


def _call_bytes(config: EngineConfig, float_bytes: int, kind: str) -> int:
    """Activations of the largest call: a layer's for all rows or the ResNet's for all pictures, whichever is larger."""
    rows = choose_call_rows(kind, config.widest_row * float_bytes)
    tokens = config.patches + config.max_text_tokens
    layer = rows * (_WIDEST_TENSORS[kind] * config.widest_row + tokens * _LIVE_TENSORS * config.width)
    picture = (config.image_size // 4) ** 2 * _STEM_CHANNELS * _LIVE_TENSORS
    return max(layer, _PICTURES[kind] * picture) * float_bytes


MAX_VOCABULARY_BYTES = 32 << 20
_CONVOLUTION = 4  # dimensions of its weight


def load_ofa(folder: Path, bundle: Bundle, options: LoadOptions, progress: Progress) -> OfaEngine:
    """Open a bundle that `convert` sealed. Device thread only.

    Raises:
        BundleRefused: the content is not in the layout that `convert` writes.
        DeviceUnknown: this machine has no such device or precision.
        torch.OutOfMemoryError: the model does not fit on the device.
    """
    if bundle.engine != "ofa":
        raise BundleRefused(f"the bundle is for engine {bundle.engine[:80]!r}, supported: 'ofa'")
    device = torch_device(options.device)
    precision = options.precision or default_precision(options.device)
    dtype = torch_dtype(precision)
    if device.type == "cpu":
        set_threads(options.threads)
    torch.backends.cudnn.allow_tf32 = False  # float32 means float32, in convolutions as in all else
    progress("reading", 0.0)
    try:
        config = read_config(folder)
        tokenizer = read_tokenizer(folder)
        tensors = load_file(folder / WEIGHTS_NAME, device=str(device))
        if device.type == "cpu":
            tensors |= _map_convolutions(folder / WEIGHTS_NAME)
        model = _build_model(config, tensors, dtype)
        progress("reading", 0.8)
        biases = PositionBiases(select_tables(tensors), config, dtype, is_full=device.type == "cuda")
    except (ValueError, KeyError, OSError, SafetensorError) as error:
        raise BundleRefused(
            f"the bundle is not in the layout that convert writes: {_describe_without_path(error)}"
        ) from error
    progress("reading", 1.0)
    for one in dict.fromkeys((dtype, torch.float32)):
        report_obstacle(device.type, one, options.log)
    if device.type == "cpu":
        # Not in the warm-up, whose seconds are the first estimate of a row's cost.
        is_useful = can_use_kernels(config.patches + config.max_text_tokens, dtype)
        load_kernels(options.kernels if is_useful else None, options.log, lambda share: progress("compiling", share))
    return OfaEngine(model, biases, tokenizer, options.device, precision, options.pictures, options.log)


def read_tokenizer(folder: Path) -> Tokenizer:
    """Read vocabulary and merges of a sealed bundle.

    Raises:
        ValueError: a file is malformed.
        OSError: a file cannot be read.
    """
    vocabulary = load_json(read_bounded(folder / VOCABULARY_NAME, MAX_VOCABULARY_BYTES))
    lines = read_bounded(folder / MERGES_NAME, MAX_VOCABULARY_BYTES).decode("utf-8").split("\n")
    pairs = [line.split(" ") for line in lines if line]
    if any(len(pair) != 2 for pair in pairs):  # noqa: PLR2004 - a pair is two
        raise ValueError(f"{MERGES_NAME} has a line that is not a pair")
    path = folder / ADDED_WORDS_NAME
    added = load_json(read_bounded(path, MAX_VOCABULARY_BYTES)) if path.is_file() else {}
    return Tokenizer(vocabulary, [(left, right) for left, right in pairs], added)


def _build_model(config: EngineConfig, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> OfaModel:
    """Assign mapped weights to a model created without memory."""
    with torch.device("meta"):
        model = OfaModel(config)
    expected = {stored_name(name): (name, tensor) for name, tensor in model.state_dict().items()}
    stored = {name: _to_torch_order(tensor) for name, tensor in tensors.items() if not name.startswith(PREFIX)}
    if set(stored) != set(expected):
        raise ValueError(f"tensors missing or surplus: {', '.join(sorted(set(stored) ^ set(expected))[:5])}")
    weights: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        parameter, meta = expected[name]
        if tensor.shape != meta.shape or not tensor.is_floating_point():
            raise ValueError(f"tensor {name} is {tuple(tensor.shape)} {tensor.dtype}")
        weights[parameter] = tensor.to(dtype)
    model.load_state_dict(weights, assign=True)
    model.eval().requires_grad_(False)
    model.image_encoder.resnet.reorder_weights(config.image_size)
    return model


def _map_convolutions(path: Path) -> dict[str, Tensor]:
    """Map weights of convolutions separately: they are reordered into copies, after which this mapping is freed."""
    with safe_open(path, "pt") as file:
        names = [name for name in file.keys() if len(file.get_slice(name).get_shape()) == _CONVOLUTION]  # noqa: SIM118
        return {name: file.get_tensor(name) for name in names}


def _to_torch_order(tensor: Tensor) -> Tensor:
    """Return convolution weights, stored channels-last, as a view in torch's order of dimensions."""
    return tensor.permute(0, 3, 1, 2) if tensor.dim() == _CONVOLUTION else tensor


def _describe_without_path(error: Exception) -> str:
    """Message of an error; only the class of an OSError, whose message may name a path."""
    return type(error).__name__ if isinstance(error, OSError) else str(error)[:300]
