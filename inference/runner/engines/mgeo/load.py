"""Estimates the memory of a sealed MGeo bundle and opens it. Weights are memory-mapped, not copied."""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from common.bundle import Bundle
from common.durable import read_bounded
from inference.runner.device import default_precision, set_threads, torch_device, torch_dtype
from inference.runner.engines.base import BundleRefused, LoadOptions, MemoryEstimate, Progress
from inference.runner.engines.linear import report_obstacle
from inference.runner.engines.mgeo.config import (
    MAX_VOCABULARY_BYTES,
    VOCABULARY_NAME,
    WEIGHTS_NAME,
    EngineConfig,
    read_config,
)
from inference.runner.engines.mgeo.engine import STEP_TOKENS, MgeoEngine
from inference.runner.engines.mgeo.model import MgeoModel
from inference.runner.engines.mgeo.tokenizer import WordTokenizer

# Workspaces of cuBLAS and cuBLASLt (32 MiB each on Hopper), and kernels, which are loaded on first use.
_LIBRARY_BYTES = {"cpu": 0, "cuda": 256 << 20}
_LIVE_TENSORS = 6  # of one token's width that a layer holds at once, beside the widest activation


def estimate_mgeo_memory(folder: Path, _bundle: Bundle, options: LoadOptions) -> MemoryEstimate:
    """Estimate a load: the size of the weights is exact, working memory follows the engine's largest step.

    Raises:
        ValueError: the bundle is not in the layout that `convert` writes.
        OSError: a file cannot be read.
    """
    kind = options.device.partition(":")[0]
    float_bytes = torch_dtype(options.precision or default_precision(options.device)).itemsize
    config = read_config(folder)
    working = STEP_TOKENS[kind] * (config.ffn + _LIVE_TENSORS * config.width) * float_bytes + _LIBRARY_BYTES[kind]
    return MemoryEstimate(_count_parameters(folder / WEIGHTS_NAME) * float_bytes, working)


def _count_parameters(path: Path) -> int:
    """Numbers in a bundle's tensors; reads the header alone."""
    try:
        with safe_open(path, "pt") as file:
            return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118  no mapping
    except SafetensorError as error:
        raise ValueError(f"{path.name} is not valid safetensors") from error


def load_mgeo(folder: Path, bundle: Bundle, options: LoadOptions, progress: Progress) -> MgeoEngine:
    """Open a bundle that `convert` sealed. Device thread only.

    Raises:
        BundleRefused: the content is not in the layout that `convert` writes.
        DeviceUnknown: this machine has no such device or precision.
        torch.OutOfMemoryError: the model does not fit on the device.
    """
    if bundle.engine != "mgeo":
        raise BundleRefused(f"the bundle is for engine {bundle.engine[:80]!r}, supported: 'mgeo'")
    device = torch_device(options.device)
    precision = options.precision or default_precision(options.device)
    if device.type == "cpu":
        set_threads(options.threads)
    progress("reading", 0.0)
    try:
        config = read_config(folder)
        tokenizer = WordTokenizer(read_vocabulary(folder), config.words)
        model = _build_model(config, load_file(folder / WEIGHTS_NAME, device=str(device)), torch_dtype(precision))
    except (ValueError, KeyError, TypeError, OSError, SafetensorError) as error:
        raise BundleRefused(
            f"the bundle is not in the layout that convert writes: {_describe_without_path(error)}"
        ) from error
    progress("reading", 1.0)
    report_obstacle(device.type, torch_dtype(precision), options.log)
    return MgeoEngine(model, config, tokenizer, options.device, precision)


def read_vocabulary(folder: Path) -> dict[str, int]:
    """Read the vocabulary of a sealed bundle: the token of each line, with the line's number.

    Raises:
        ValueError: the file is malformed.
        OSError: it cannot be read.
    """
    text = read_bounded(folder / VOCABULARY_NAME, MAX_VOCABULARY_BYTES).decode("utf-8")
    return {token: number for number, token in enumerate(text.removesuffix("\n").split("\n"))}


def _build_model(config: EngineConfig, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> MgeoModel:
    """Assign mapped weights to a model created without memory."""
    with torch.device("meta"):
        model = MgeoModel(config)
    expected = model.state_dict()
    if set(tensors) != set(expected):
        raise ValueError(f"tensors missing or surplus: {', '.join(sorted(set(tensors) ^ set(expected))[:5])}")
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape or not tensor.is_floating_point():
            raise ValueError(f"tensor {name} is {tuple(tensor.shape)} {tensor.dtype}")
    model.load_state_dict({name: tensor.to(dtype) for name, tensor in tensors.items()}, assign=True)
    model.eval().requires_grad_(requires_grad=False)
    return model


def _describe_without_path(error: Exception) -> str:
    """Message of an error; only the class of an OSError, whose message may name a path."""
    return type(error).__name__ if isinstance(error, OSError) else str(error)[:300]
