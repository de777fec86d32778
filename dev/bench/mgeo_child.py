"""One process, one precision, one number of threads: our MGeo engine on addresses. Prints one JSON line."""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from common.bundle import read_bundle
from dev.bench.engine_child import percentile
from dev.bench.mgeo_texts import LENGTHS, count_operations, make_texts
from inference.runner.device import torch_dtype
from inference.runner.engines.base import AddressItem, LoadOptions
from inference.runner.engines.linear import multiply, supports_products
from inference.runner.engines.mgeo.load import load_mgeo
from inference.runner.process import keep_freed_memory

BATCHES = (1, 8, 32)
# The kernel adds the CPU time of other running threads at its next tick only, up to 4 ms later.
MIN_CPU_SECONDS = 0.1
# The products of the network for 8 and 32 usual addresses, and a large square one.
PEAK_SHAPES = ((216, 768, 3072), (864, 768, 3072), (864, 3072, 768), (2048, 2048, 2048))


def measure_peak(precision: str) -> float:
    """Operations per second of the fastest matrix product tried: torch's, and oneDNN's where this machine has it."""
    dtype = torch_dtype(precision)
    products: list[Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = [torch.nn.functional.linear]
    if supports_products("cpu", dtype):
        products.append(multiply)
    rates = []
    for rows, inner, columns in PEAK_SHAPES:
        one, other = torch.randn(rows, inner).to(dtype), torch.randn(columns, inner).to(dtype)
        with torch.inference_mode():
            seconds = min(_time(product, one, other) for product in products for _ in range(4))
        rates.append(2 * rows * inner * columns / seconds)
    return max(rates)


def _time(
    product: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], one: torch.Tensor, other: torch.Tensor
) -> float:
    begun, calls = time.process_time(), 0
    while not calls or time.process_time() - begun < MIN_CPU_SECONDS:
        product(one, other)
        calls += 1
    return (time.process_time() - begun) / calls / torch.get_num_threads()


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--precision", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--kinds", nargs="+", default=list(LENGTHS))
    parser.add_argument("--without-peak", action="store_true", help="do not measure the machine's matrix products")
    options = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(options.threads)
    load = LoadOptions(options.device, options.precision, options.threads)
    engine = load_mgeo(options.folder, read_bundle(options.folder), load, lambda _phase, _share: None)
    engine.warm_up(lambda _phase, _share: None)
    rows = []
    has_peak = options.device == "cpu" and not options.without_peak
    peak = measure_peak(options.precision) if has_peak else 0.0
    for kind in options.kinds:
        for batch in BATCHES:
            texts = make_texts(kind, batch)
            words = [engine.prepare(AddressItem((text,))).addresses[0] for text in texts]
            operations = sum(count_operations(engine.config, len(text)) for text in texts)
            engine.tag(words)
            seconds: list[float] = []
            cpu, until = time.process_time(), time.perf_counter() + options.seconds
            while time.perf_counter() < until or len(seconds) < 3:
                begun = time.perf_counter()
                engine.tag(words)
                seconds.append(time.perf_counter() - begun)
            cpu_seconds = (time.process_time() - cpu) / len(seconds) / options.threads
            before, peak = peak, measure_peak(options.precision) if has_peak else 0.0
            highest = max(before, peak)  # before and after: both see the same hour
            median, worst = percentile(tuple(seconds), 0.5), percentile(tuple(seconds), 0.95)
            # Of the peak in CPU time, which other programs on this machine take nothing of.
            computed = cpu_seconds if options.device == "cpu" else median
            share = operations / computed / highest if highest else 0.0
            rows.append([kind, batch, batch / computed, median, worst, operations / computed, share])
    print(json.dumps(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
