"""What loading an OFA will take, foretold from its header and its configuration. Estimates, on the generous side."""

from pathlib import Path

import torch

from common.bundle import Bundle
from inference.runner.device import default_precision, torch_dtype
from inference.runner.engines.base import LoadOptions, MemoryNeed
from inference.runner.engines.ofa.config import WEIGHTS_NAME, EngineConfig, read_config
from inference.runner.engines.ofa.engine import rows_that_pay
from inference.runner.engines.ofa.positions import MADE_BYTES, PREFIX
from inference.runner.engines.tensors_header import read_header

_PICTURES = {"cpu": 1, "cuda": 32}  # that the ResNet sees at once
_STEM_CHANNELS = 256  # of the ResNet where it is widest, at a quarter of the picture's side
_LIVE_TENSORS = 4  # of one size that a layer holds at once


def ofa_needs(folder: Path, _bundle: Bundle, options: LoadOptions) -> MemoryNeed:
    """Foretell a load; the weights' size is exact, the rest follows the engine's largest call.

    Raises:
        ValueError, KeyError: the bundle is not what `convert` writes.
        OSError: it cannot be read.
    """
    kind = options.device.partition(":")[0]
    float_bytes = torch_dtype(options.precision or default_precision(options.device)).itemsize
    weights = sum(
        tensor.stored_bytes if tensor.name.startswith(PREFIX) else tensor.bytes_at(float_bytes)
        for tensor in read_header(folder / WEIGHTS_NAME)
    )
    config = read_config(folder)
    working = _biases(config, float_bytes, kind) + _largest_call(config, float_bytes, kind)
    return MemoryNeed(weights, working)


def _biases(config: EngineConfig, float_bytes: int, kind: str) -> int:
    """Attention biases: what is made at once, what the encoder's are made of, all of the decoder's."""
    text, tokens = config.max_text_tokens, config.patches + config.max_text_tokens
    head = tokens * tokens * float_bytes
    layer = config.encoder_heads * head
    product = layer if float_bytes == torch.float32.itemsize else 0
    # On a CPU differences are kept, of rows and of columns: not quite twice as many each as there are patches a side.
    distances = config.encoder_heads * (4 * config.patches + text * text) * float_bytes
    sources = config.encoder_layers * (layer if kind == "cuda" else distances)
    decoder = config.decoder_heads * (config.decoder_layers * text * text + text * tokens)
    return max(head, min(layer, MADE_BYTES[kind])) + product + sources + decoder * float_bytes


def _largest_call(config: EngineConfig, float_bytes: int, kind: str) -> int:
    """What a layer holds for all rows at once, or the ResNet for all pictures: the larger of the two."""
    rows = rows_that_pay(kind, config.widest_row * float_bytes)
    tokens = config.patches + config.max_text_tokens
    layer = rows * (config.widest_row + tokens * _LIVE_TENSORS * config.width)
    picture = (config.image_size // 4) ** 2 * _STEM_CHANNELS * _LIVE_TENSORS
    return max(layer, _PICTURES[kind] * picture) * float_bytes
