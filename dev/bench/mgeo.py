"""`make bench-mgeo`: addresses a second of a base MGeo, its share of this machine's peak, and the stock pipeline.

102 M parameters with random weights. For 1 and 2 threads, float32 and bfloat16: addresses of 12, 25, 100 and mixed
characters, singly and in batches of 8 and 32; operations are counted without padding. Then through a server, with 1, 8
and 64 callers of single usual addresses. With the parity environment (built by `make parity`) the stock pipeline is
measured in the same run.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from dev.bench.mgeo_served import measure_served
from dev.parity.mgeo.make_model import Recipe, make_model
from inference.runner.conversion.mgeo import convert_mgeo
from inference.server.runner_client.start import runner_environment

ORACLE = Path(".venv-parity/bin/python")
FOLDER = Path(".bench") / "mgeo"
CHILD_SECONDS = 1800.0
FILE_WIDTH = 140  # characters
Rows = list[list[float]]


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--oracle", type=Path, default=ORACLE, help="Python that has the stock pipeline")
    options = parser.parse_args()
    console = Console()
    if not console.is_terminal:
        console = Console(width=FILE_WIDTH)  # a file has no width of its own
    folders = {precision: _bundle(precision) for precision in options.precisions}
    stock: dict[int, Rows] = {}
    for threads in options.threads:
        if options.oracle.exists():
            command = [str(options.oracle), "-m", "dev.bench.mgeo_stock", f"--folder={_source()}"]
            stock[threads] = _run([*command, f"--threads={threads}"], None)
        for precision, folder in folders.items():
            command = [sys.executable, "-m", "dev.bench.mgeo_child", f"--folder={folder}", f"--precision={precision}"]
            rows = _run([*command, f"--threads={threads}", f"--seconds={options.seconds}"], runner_environment())
            console.print(_table(precision, threads, rows, stock.get(threads, [])))
    threads = max(options.threads)
    for precision, folder in folders.items():
        served = measure_served(folder, precision, threads, 3 * options.seconds)
        for row in served:
            console.print(
                f"served, {precision}, {threads} threads, {row.callers} callers: {row.items_per_second:.1f} items/s,"
                f" p50 {1e3 * row.p50:.0f} ms, p95 {1e3 * row.p95:.0f} ms"
            )
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


def _run(command: list[str], environment: dict[str, str] | None) -> Rows:
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, timeout=CHILD_SECONDS)
    rows: Rows = json.loads(done.stdout.splitlines()[-1])
    return rows


def _table(precision: str, threads: int, rows: Rows, stock: Rows) -> Table:
    best: dict[float, float] = {}
    for kind, _, rate, _ in stock:
        best[kind] = max(best.get(kind, 0.0), rate)
    table = Table(title=f"a base MGeo (102 M parameters), {precision}, {threads} threads")
    for title in ("addresses", "batch", "items/s", "p50", "p95", "TFLOP/s", "share of peak", "stock's best", "faster"):
        table.add_column(title, justify="right")
    for kind, batch, rate, median, worst, speed, share in rows:
        other = best.get(kind)
        table.add_row(
            str(kind),
            str(batch),
            f"{rate:.1f}",
            f"{1e3 * median:.0f} ms",
            f"{1e3 * worst:.0f} ms",
            f"{speed / 1e12:.3f}",
            f"{share:.0%}",
            f"{other:.1f}" if other else "–",
            f"{rate / other:.1f}×" if other else "–",
        )
    return table


if __name__ == "__main__":
    raise SystemExit(main())
