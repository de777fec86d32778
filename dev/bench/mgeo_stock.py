"""The stock pipeline on the same addresses, in the parity environment. Prints one JSON line."""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch

from dev.bench.mgeo_texts import LENGTHS, make_texts
from dev.parity.mgeo.oracle import MgeoOracle

BATCHES = (1, 8, 32)
LONG_SECONDS = 12.0  # after which a batch is not repeated


def main() -> int:
    """Measure and print: kind, batch, items a second of CPU time, median and longest seconds of a batch."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--kinds", nargs="+", default=list(LENGTHS))
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    oracle = MgeoOracle(options.folder)
    rows = []
    for kind in options.kinds:
        for batch in BATCHES:
            texts = make_texts(kind, batch)
            seconds: list[float] = []
            cpu_seconds: list[float] = []
            until = time.perf_counter() + LONG_SECONDS
            while len(seconds) < options.repeats and (time.perf_counter() < until or not seconds):
                begun, cpu = time.perf_counter(), time.process_time()
                if batch == 1:
                    oracle.pipeline(texts[0])
                else:
                    oracle.pipeline(texts, batch_size=batch)
                seconds.append(time.perf_counter() - begun)
                cpu_seconds.append((time.process_time() - cpu) / options.threads)
            rate = batch / statistics.median(cpu_seconds)
            rows.append([kind, batch, rate, statistics.median(seconds), max(seconds)])
    print(json.dumps(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
