"""`python -m dev.bench.engine_layers`: a layer of the large OFA by oneDNN's products and by torch's own, alternating.

Random weights, one thread, medians of its CPU time, which other programs take nothing of.
"""

import argparse
import contextlib
import statistics
import sys
import time
from collections.abc import Callable
from unittest import mock

import torch
from torch import Tensor, nn

from inference.runner.device import torch_dtype
from inference.runner.engines import linear
from inference.runner.engines.ofa import attention
from inference.runner.engines.ofa.layers import DecoderLayer, EncoderLayer
from inference.runner.process import keep_freed_memory

WIDTH, HEADS, HIDDEN, ASKED = 1024, 16, 4096, 13
TOKENS = {"float32": 914, "bfloat16": 928}
Work = Callable[[], object]


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    for precision in TOKENS:
        with torch.inference_mode():
            _measure(precision, options.rounds)
    return 0


def _measure(precision: str, rounds: int) -> None:
    times: dict[tuple[str, bool], list[float]] = {}
    works = _works(torch_dtype(precision), TOKENS[precision])
    for number in range(rounds + 1):
        for is_fused in (False, True):
            with _products(is_fused):
                for name, work in works.items():
                    begun = time.thread_time()
                    work()
                    if number:  # the first one creates kernels
                        times.setdefault((name, is_fused), []).append(time.thread_time() - begun)
    for name in works:
        before, after = (1e3 * statistics.median(times[name, is_fused]) for is_fused in (False, True))
        sys.stdout.write(f"{precision:9} {name:28} torch {before:7.1f} ms   oneDNN {after:7.1f} ms\n")
        sys.stdout.flush()


def _products(is_fused: bool) -> contextlib.AbstractContextManager[object]:  # noqa: FBT001  what is alternated
    """Replace the choice of products; attention follows, whatever its dtype."""
    linear.find_obstacle.cache_clear()
    attention._has_fast_products.cache_clear()  # noqa: SLF001
    machine = "x86_64" if is_fused else "none"
    return mock.patch("platform.machine", return_value=machine)


def _works(dtype: torch.dtype, tokens: int) -> dict[str, Work]:
    encoder, decoder = EncoderLayer(WIDTH, HEADS, HIDDEN), DecoderLayer(WIDTH, HEADS, HIDDEN)
    for module in (encoder, decoder):
        _fill(module.to(dtype))
    x, asked = torch.randn(1, tokens, WIDTH).to(dtype), torch.randn(1, ASKED, WIDTH).to(dtype)
    bias = torch.randn(1, HEADS, tokens, tokens).to(dtype)
    causal, cross = torch.zeros(1, HEADS, ASKED, ASKED).to(dtype), bias[:, :, :ASKED].contiguous()
    qkv, out = encoder.attention.qkv, encoder.attention.out
    return {
        "matrix product 928 1024 4096": _product(dtype),
        "encoder layer": lambda: encoder(x, [bias]),
        "encoder: feed-forward": lambda: encoder.feed(x, x),
        "encoder: qkv and out": lambda: (qkv(x), out(x)),
        "encoder: whole attention": lambda: encoder.attention(x, [bias]),
        "decoder layer": lambda: decoder(asked, x, causal, cross),
        "decoder: feed-forward": lambda: decoder.feed(asked, asked),
        "decoder: cross-attention": lambda: decoder.cross(asked, x, cross),
    }


def _product(dtype: torch.dtype) -> Work:
    left, right = torch.randn(928, WIDTH).to(dtype), torch.randn(HIDDEN, WIDTH).to(dtype)

    def multiply() -> Tensor:
        is_fused = linear.supports_products("cpu", dtype)
        return linear.multiply(left, right) if is_fused else torch.mm(left, right.T)

    return multiply


def _fill(module: nn.Module) -> None:
    for parameter in module.parameters():
        parameter.copy_(torch.randn(parameter.shape) / parameter.shape[-1] ** 0.5)


if __name__ == "__main__":
    raise SystemExit(main())
