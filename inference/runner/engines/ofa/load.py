"""Open a sealed bundle: its weights are mapped, not copied, so that loading costs no time or memory twice."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from common.bundle import Bundle
from common.durable import read_bounded
from inference.runner.device import default_precision, set_threads, torch_device, torch_dtype
from inference.runner.engines.base import BundleRefused, LoadOptions, Progress
from inference.runner.engines.ofa.config import (
    MERGES_NAME,
    VOCABULARY_NAME,
    WEIGHTS_NAME,
    EngineConfig,
    read_config,
)
from inference.runner.engines.ofa.engine import OfaEngine
from inference.runner.engines.ofa.model import OfaModel
from inference.runner.engines.ofa.picture import PictureLimits
from inference.runner.engines.ofa.positions import PREFIX, PositionBiases, tables_of
from inference.runner.engines.ofa.tokenizer import Tokenizer

MAX_VOCABULARY_BYTES = 32 << 20
_CONVOLUTION = 4  # dimensions of its weight


def load_ofa(folder: Path, bundle: Bundle, options: LoadOptions, progress: Progress) -> OfaEngine:
    """Open a bundle that `convert` sealed.

    Must run on the thread that will compute.

    Raises:
        BundleRefused: its content is not what `convert` writes.
        DeviceUnknown: no such device or precision here.
        torch.OutOfMemoryError: it does not fit on the device.
    """
    if bundle.engine != "ofa":
        raise BundleRefused(f"the bundle is for engine {bundle.engine[:80]!r}, supported: 'ofa'")
    device = torch_device(options.device)
    precision = options.precision or default_precision(options.device)
    dtype = torch_dtype(precision)
    if device.type == "cpu":
        set_threads(options.threads)
    progress("reading", 0.0)
    try:
        config = read_config(folder)
        tokenizer = read_tokenizer(folder)
        tensors = load_file(folder / WEIGHTS_NAME, device=str(device))
        if device.type == "cpu":
            tensors |= _convolutions(folder / WEIGHTS_NAME)
        model = _model_of(config, tensors, dtype)
        progress("reading", 0.8)
        biases = PositionBiases(tables_of(tensors), config, dtype)
    except (ValueError, KeyError, OSError, SafetensorError) as error:
        raise BundleRefused(f"the bundle is not what convert writes: {_without_path(error)}") from error
    progress("reading", 1.0)
    limits = PictureLimits(options.max_image_pixels, options.max_image_side)
    return OfaEngine(model, biases, tokenizer, options.device, precision, limits)


def read_tokenizer(folder: Path) -> Tokenizer:
    """Read the words of a sealed bundle.

    Raises:
        ValueError: they are malformed.
        OSError: they cannot be read.
    """
    vocabulary = json.loads(read_bounded(folder / VOCABULARY_NAME, MAX_VOCABULARY_BYTES))
    lines = read_bounded(folder / MERGES_NAME, MAX_VOCABULARY_BYTES).decode("utf-8").split("\n")
    pairs = [line.split(" ") for line in lines if line]
    if any(len(pair) != 2 for pair in pairs):  # noqa: PLR2004 - a pair is two
        raise ValueError(f"{MERGES_NAME} holds a line that is no pair")
    return Tokenizer(vocabulary, [(left, right) for left, right in pairs])


def _model_of(config: EngineConfig, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> OfaModel:
    """Put mapped weights into a model that never had any of its own."""
    with torch.device("meta"):
        model = OfaModel(config)
    weights = {name: _as_module_has_it(tensor) for name, tensor in tensors.items() if not name.startswith(PREFIX)}
    expected = model.state_dict()
    if set(weights) != set(expected):
        raise ValueError(f"tensors missing or surplus: {', '.join(sorted(set(weights) ^ set(expected))[:5])}")
    for name, tensor in weights.items():
        if tensor.shape != expected[name].shape or not tensor.is_floating_point():
            raise ValueError(f"tensor {name} is {tuple(tensor.shape)} {tensor.dtype}")
    model.load_state_dict({name: tensor.to(dtype) for name, tensor in weights.items()}, assign=True)
    model.eval().requires_grad_(False)
    model.eyes.resnet.arrange(config.image_size)
    return model


def _convolutions(path: Path) -> dict[str, Tensor]:
    """Weights that are arranged anew, through a mapping of their own: it goes when the last of them does."""
    with safe_open(path, "pt") as file:
        names = [name for name in file.keys() if len(file.get_slice(name).get_shape()) == _CONVOLUTION]  # noqa: SIM118
        return {name: file.get_tensor(name) for name in names}


def _as_module_has_it(tensor: Tensor) -> Tensor:
    """Convolutions lie channels-last in the file: seen from here they have torch's shape at no cost."""
    return tensor.permute(0, 3, 1, 2) if tensor.dim() == _CONVOLUTION else tensor


def _without_path(error: Exception) -> str:
    """What happened, unless it could name a path."""
    return type(error).__name__ if isinstance(error, OSError) else str(error)[:300]
