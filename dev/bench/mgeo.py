"""`make bench-mgeo`: addresses a second of a base MGeo, its share of this machine's peak, and the stock pipeline.

102 M parameters with random weights. For 1 and 2 threads, float32 and bfloat16: addresses of 12, 25, 100 and mixed
characters, singly and in batches of 8 and 32; operations are counted without padding. Then through a server, with 1, 8
and 64 callers of single usual addresses, beside the bare engine (`--served`: that part alone). With the parity
environment (built by `make parity`) the stock pipeline is measured in the same run. Items a second of the engines are
those of the threads' CPU time, of which other programs take nothing; p50, p95 and all that is served are of the clock.
Prints Markdown, with the load of the machine at each step. Its defaults are meant for at most twelve minutes on two
quiet CPUs; the first run also makes the model (1 GB).
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from dev.bench.mgeo_served import measure_served
from dev.bench.mgeo_texts import LENGTHS
from dev.parity.mgeo.make_model import Recipe, make_model
from inference.runner.conversion.mgeo import convert_mgeo
from inference.server.runner_client.start import runner_environment

ORACLE = Path(".venv-parity/bin/python")
FOLDER = Path(".bench") / "mgeo"
CHILD_SECONDS = 1800.0
# Items a second, median and 95th percentile of a batch; ours: operations a second and their share of the peak too.
Row = list[float]
Cells = Mapping[tuple[str, int], Row]  # by kind and batch


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.5, help="of each measurement")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--kinds", nargs="+", default=list(LENGTHS), choices=list(LENGTHS))
    parser.add_argument("--repeats", type=int, default=2, help="of each batch of the stock pipeline, within 12 s")
    parser.add_argument("--oracle", type=Path, default=ORACLE, help="Python that has the stock pipeline")
    parser.add_argument("--served", action="store_true", help="only what is served, beside the bare engine")
    options = parser.parse_args()
    begun = time.perf_counter()
    folders = {precision: _bundle(precision) for precision in options.precisions}
    kinds = ["--kinds", *options.kinds]
    arguments = f' ARGS="{" ".join(sys.argv[1:])}"' if sys.argv[1:] else ""
    _print(f"`make bench-mgeo{arguments}` on {os.cpu_count()} CPUs ({_name_cpu()}):")
    for threads in [] if options.served else options.threads:
        number, stock = [f"--threads={threads}"], dict[tuple[str, int], Row]()
        if options.oracle.exists():
            command = [str(options.oracle), "-m", "dev.bench.mgeo_stock", f"--folder={_source()}", *number, *kinds]
            stock = _run([*command, f"--repeats={options.repeats}"], None)
        ours = {}
        for precision, folder in folders.items():
            command = [sys.executable, "-m", "dev.bench.mgeo_child", f"--folder={folder}", f"--precision={precision}"]
            given = [*number, f"--seconds={options.seconds}", *kinds]
            ours[precision] = _run([*command, *given], runner_environment())
        _print_engine(threads, stock, ours)
    _print_served(folders, options.threads, options.seconds)
    _print(f"\nWhole run: {(time.perf_counter() - begun) / 60:.1f} minutes.")
    return 0


def _source() -> Path:
    folder = FOLDER / "source"
    if not (folder / "pytorch_model.bin").exists():
        folder.mkdir(parents=True, exist_ok=True)
        make_model(folder, Recipe(size="base"))
    return folder


def _bundle(precision: str) -> Path:
    folder = FOLDER / precision
    if not (folder / "bundle.json").exists():
        folder.mkdir(parents=True)
        convert_mgeo(_source(), folder, "base", precision)
    return folder


def _run(command: list[str], environment: dict[str, str] | None) -> dict[tuple[str, int], Row]:
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, timeout=CHILD_SECONDS)
    rows = json.loads(done.stdout.splitlines()[-1])
    return {(kind, batch): rest for kind, batch, *rest in rows}


def _print_engine(threads: int, stock: Cells, ours: Mapping[str, Cells]) -> None:
    """One table: a row for each kind and batch, stock and ours beside each other."""
    _print(f"\n**{threads} thread{'s' if threads > 1 else ''}** (load of the machine then: {_load()})\n")
    columns = [f"{name}, items/s (p50, p95 of the batch)" for name in ("stock", *ours)]
    columns += [f"{precision}: share of the peak, against stock's best" for precision in ours]
    _print("| characters | batch | " + " | ".join(columns) + " |")
    _print("|---|---:|" + "---:|" * len(columns))
    for kind, batch in next(iter(ours.values())):
        best = max((row[0] for (other, _), row in stock.items() if other == kind), default=0.0)
        cells = [_speed(stock.get((kind, batch)))]
        cells += [_speed(rows[kind, batch]) for rows in ours.values()]
        for rows in ours.values():
            rate, share = rows[kind, batch][0], rows[kind, batch][-1]
            cells.append(f"{share:.0%}, {rate / best:.1f} ×" if best else f"{share:.0%}")
        _print(f"| {kind} ({_characters(kind)}) | {batch} | " + " | ".join(cells) + " |")


def _print_served(folders: Mapping[str, Path], threads: Sequence[int], seconds: float) -> None:
    """One table: what callers get, its share of the bare engine, and the CPU time of each item by process."""
    _print(f"\n**Through the server**, usual addresses (load of the machine then: {_load()})\n")
    columns = ("items/s", "p50", "p95", "bare engine", "of the bare", "CPU of an item: runner", "server", "callers")
    _print("| precision | threads | callers | " + " | ".join(columns) + " |")
    _print("|---|---:|---:|" + "---:|" * len(columns))
    for precision, folder in folders.items():
        for number in threads:
            bare = _measure_bare(folder, precision, number, seconds)
            for row in measure_served(folder, precision, number, 2 * seconds):
                engine = bare[row.engine_batch]
                cells = (f"{row.items_per_second:.1f}", f"{1e3 * row.p50:.0f} ms", f"{1e3 * row.p95:.0f} ms")
                shares = (f"{engine:.1f} in batches of {row.engine_batch}", f"{row.items_per_second / engine:.0%}")
                costs = [f"{1e3 * cost:.2f} ms" for cost in (row.runner_cpu, row.server_cpu, row.caller_cpu)]
                _print(f"| {precision} | {number} | {row.callers} | {' | '.join((*cells, *shares, *costs))} |")


def _measure_bare(folder: Path, precision: str, threads: int, seconds: float) -> dict[int, float]:
    """Usual addresses a second by the clock of the engine alone, by batch."""
    command = [sys.executable, "-m", "dev.bench.mgeo_child", f"--folder={folder}", f"--precision={precision}"]
    given = [f"--threads={threads}", f"--seconds={seconds}", "--kinds", "usual", "--without-peak"]
    rows = _run([*command, *given], runner_environment())
    return {batch: batch / row[1] for (_, batch), row in rows.items()}


def _speed(row: Row | None) -> str:
    if row is None:
        return "–"
    rate, median, worst, *_ = row
    return f"{rate:.1f} ({1e3 * median:.0f}, {1e3 * worst:.0f} ms)"


def _characters(kind: str) -> str:
    lengths = LENGTHS[kind]
    return str(lengths[0]) if len(lengths) == 1 else f"{min(lengths)} to {max(lengths)}"


def _name_cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def _load() -> str:
    return f"{os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs"


def _print(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
