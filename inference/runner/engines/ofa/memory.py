"""Estimates the memory of an OFA load from the weights' header and the configuration; errs on the high side."""

import math
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from common.bundle import Bundle
from inference.runner.device import default_precision, torch_dtype
from inference.runner.engines.base import LoadOptions, MemoryEstimate
from inference.runner.engines.ofa.config import WEIGHTS_NAME, EngineConfig, read_config
from inference.runner.engines.ofa.engine import choose_call_rows
from inference.runner.engines.ofa.positions import BIAS_BUFFER_BYTES, PREFIX

_PICTURES = {"cpu": 1, "cuda": 32}  # in one call of the ResNet
_STEM_CHANNELS = 256  # of the ResNet's widest activations, at a quarter of the picture's side
_LIVE_TENSORS = 4  # activations of one size that a layer holds at once
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
    working = _bias_bytes(config, float_bytes, kind) + _call_bytes(config, float_bytes, kind)
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
    """Attention biases: the encoder's buffer and the tables it is computed from, and all of the decoder's biases."""
    text, tokens = config.max_text_tokens, config.patches + config.max_text_tokens
    head = tokens * tokens * float_bytes
    layer = config.encoder_heads * head
    product = layer if float_bytes == torch.float32.itemsize else 0
    # A CPU keeps picture biases by row and column difference: (2 side - 1)², less than 4 × patches values.
    distances = config.encoder_heads * (4 * config.patches + text * text) * float_bytes
    tables = config.encoder_layers * (layer if kind == "cuda" else distances)
    decoder = config.decoder_heads * (config.decoder_layers * text * text + text * tokens)
    return max(head, min(layer, BIAS_BUFFER_BYTES[kind])) + product + tables + decoder * float_bytes


def _call_bytes(config: EngineConfig, float_bytes: int, kind: str) -> int:
    """Activations of the largest call: a layer's for all rows or the ResNet's for all pictures, whichever is larger."""
    rows = choose_call_rows(kind, config.widest_row * float_bytes)
    tokens = config.patches + config.max_text_tokens
    layer = rows * (config.widest_row + tokens * _LIVE_TENSORS * config.width)
    picture = (config.image_size // 4) ** 2 * _STEM_CHANNELS * _LIVE_TENSORS
    return max(layer, _PICTURES[kind] * picture) * float_bytes
