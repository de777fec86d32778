"""Calls of a few fixed sizes on a GPU, each captured as a CUDA graph.

A call of one row takes some 600 kernels of 5 µs, which Python launches in 26 ms; a graph launches them all at once.
Smaller calls are padded to the next size. A first call of a size costs cuDNN up to half a second, which the warm-up
pays for every size; later calls allocate next to nothing.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inference.runner.engines.base import Pixels, Progress, log_nothing
from inference.runner.engines.ofa.config import EngineConfig
from inference.runner.engines.ofa.model import OfaModel
from inference.runner.engines.ofa.positions import PositionBiases, round_up_gpu_tokens

ROW_SIZES = (1, 2, 4, 8, 16, 24, 32)
PICTURE_SIZES = (1, 2, 4, 8, 16)  # of one call of the ResNet; more are no faster and take more memory
SHORT_TEXT = 16  # tokens; most statements are shorter
_EMPTY_TEXT = 2  # tokens of an added row: begin and end


def choose_text_sizes(config: EngineConfig) -> tuple[int, ...]:
    """Return the lengths of texts that calls are padded to: one for most statements, and the longest."""
    short = round_up_gpu_tokens(config.patches + SHORT_TEXT) - config.patches
    return tuple(sorted({min(short, config.max_text_tokens), config.max_text_tokens}))


def choose_size(count: int, sizes: Sequence[int]) -> int:
    """Return the smallest of some ascending sizes that `count` fits into."""
    return next(size for size in sizes if count <= size)


@dataclass(slots=True, eq=False)
class FixedCall:
    """A computation on tensors at fixed addresses."""

    compute: Callable[[], Tensor]
    inputs: tuple[Tensor, ...] = ()
    graph: torch.cuda.CUDAGraph | None = None
    output: Tensor | None = None  # of the graph; the next call of any size overwrites it

    def run(self) -> Tensor:
        """Compute; as one launch once captured."""
        if self.graph is None or self.output is None:
            return self.compute()
        self.graph.replay()
        return self.output

    def capture(self, pool: Any, stream: torch.cuda.Stream | None) -> None:  # noqa: ANN401  a handle without a public type
        """Record the computation's kernels, which must have run before."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            self.output = self.compute()
        self.graph = graph


@dataclass(slots=True)
class _Staging:
    """Pinned host memory for pictures, from which copies to the device need not be waited for."""

    pixels: Tensor
    copied: torch.cuda.Event | None  # None on a CPU

    def copy(self, pictures: Sequence[Pixels], to: Tensor) -> None:
        if self.copied is not None:
            self.copied.synchronize()
        np.stack(pictures, out=self.pixels.numpy()[: len(pictures)])
        to[: len(pictures)].copy_(self.pixels[: len(pictures)], non_blocking=True)
        if self.copied is not None:
            self.copied.record()


class GpuCalls:
    """Computes patch features and scores in calls of fixed sizes. Device thread only.

    Args:
        model: on a GPU. A test may use a CPU, where nothing is captured.
        biases: of the model, full ones.
        log: takes the name, the level and the fields of an event.
    """

    def __init__(self, model: OfaModel, biases: PositionBiases, log: Callable[..., None] = log_nothing) -> None:
        config, self._model, self._biases, self._log = model.config, model, biases, log
        weight = model.answer_embeddings
        self._pad, self._on_gpu = config.pad_token, weight.is_cuda
        self._stream = torch.cuda.Stream(weight.device) if self._on_gpu else None
        self._text_sizes = choose_text_sizes(config)
        with torch.inference_mode():
            side, rows = config.image_size, ROW_SIZES[-1]
            self._features = weight.new_zeros(rows, config.patches, config.width)
            self._pixels = torch.zeros(PICTURE_SIZES[-1], side, side, 3, dtype=torch.uint8, device=weight.device)
            staging = torch.zeros(self._pixels.shape, dtype=torch.uint8, pin_memory=self._on_gpu)
            self._staging = _Staging(staging, torch.cuda.Event() if self._on_gpu else None)
            self._encode = {size: self._encode_call(size) for size in PICTURE_SIZES}
            self._score = {
                (rows, text): self._score_call(rows, text) for rows in ROW_SIZES for text in self._text_sizes
            }
        self._calls = [*reversed(self._encode.values()), *reversed(self._score.values())]  # the largest first
        if self._on_gpu:
            torch.cuda.synchronize(weight.device)  # the weights were written on another stream

    @property
    def is_captured(self) -> bool:
        """Whether calls replay graphs."""
        return all(call.graph is not None for call in self._calls)

    def encode(self, pictures: Sequence[Pixels]) -> list[Tensor]:
        """(patches, width) on the device for each picture."""
        features: list[Tensor] = []
        with self._context():
            for start in range(0, len(pictures), PICTURE_SIZES[-1]):
                some = pictures[start : start + PICTURE_SIZES[-1]]
                self._staging.copy(some, self._pixels)
                features += self._encode[choose_size(len(some), PICTURE_SIZES)].run()[: len(some)].clone()
        return features

    def score(self, features: Sequence[Tensor], prompts: Sequence[Sequence[int]]) -> list[list[float]]:
        """Label probabilities of rows, each of the patch features and the tokens of a text."""
        with self._context():
            return [
                row
                for start in range(0, len(prompts), ROW_SIZES[-1])
                for row in self._score_some(
                    features[start : start + ROW_SIZES[-1]], prompts[start : start + ROW_SIZES[-1]]
                )
            ]

    def warm_up(self, progress: Progress) -> None:
        """Run every call, the largest first, and capture it; without graphs where that fails."""
        steps = len(self._calls) * (1 if self._stream is None else 2)
        with self._context():
            for step, call in enumerate(self._calls, 1):
                call.run()
                progress("warming_up", step / steps)
            if self._stream is not None:
                self._capture(lambda share: progress("warming_up", 0.5 + share / 2))

    def _capture(self, progress: Callable[[float], None]) -> None:
        pool = torch.cuda.graph_pool_handle()  # the largest call's memory serves all
        try:
            for step, call in enumerate(self._calls, 1):
                call.capture(pool, self._stream)
                progress(step / len(self._calls))
        except RuntimeError as error:  # out of memory, or a kernel that cannot be captured
            self._log("cuda_graphs_unused", level="warning", reason=type(error).__name__)
            self.drop_graphs()

    def drop_graphs(self) -> None:
        """Launch the kernels of every call one by one from now on."""
        for call in self._calls:
            call.graph = call.output = None
        torch.cuda.empty_cache()

    @contextlib.contextmanager
    def _context(self) -> Iterator[None]:
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            yield

    def _encode_call(self, size: int) -> FixedCall:
        encoder, pixels = self._model.image_encoder, self._pixels[:size]
        return FixedCall(lambda: encoder(pixels))

    def _score_call(self, rows: int, text: int) -> FixedCall:
        device = self._features.device
        texts = torch.full((rows, text), self._pad, device=device)
        lengths = torch.full((rows,), _EMPTY_TEXT, device=device)
        model, biases, features = self._model, self._biases, self._features[:rows]
        return FixedCall(lambda: model.forward_fixed(features, texts, lengths, biases), (texts, lengths))

    def _score_some(self, features: Sequence[Tensor], prompts: Sequence[Sequence[int]]) -> list[list[float]]:
        lengths = [len(prompt) for prompt in prompts]
        size = (choose_size(len(prompts), ROW_SIZES), choose_size(max(lengths), self._text_sizes))
        texts = torch.full(size, self._pad, pin_memory=self._on_gpu)
        for number, prompt in enumerate(prompts):
            texts[number, : len(prompt)] = torch.tensor(prompt)
        lengths += [_EMPTY_TEXT] * (size[0] - len(lengths))
        call = self._score[size]
        for buffer, values in zip(call.inputs, (texts, torch.tensor(lengths, pin_memory=self._on_gpu)), strict=True):
            buffer.copy_(values, non_blocking=True)
        torch.stack(list(features), out=self._features[: len(features)])
        scores: list[list[float]] = call.run()[: len(prompts)].tolist()
        return scores
