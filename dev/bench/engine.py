"""`make bench-engine`: the time of an answer of the large OFA, and its share of this machine's peak.

473 M parameters with random weights. For 1 and 2 threads, float32 and bfloat16, each in its own process: p50 and p95 of
the first and the second statement about a picture; the operations of an answer, counted from shapes; the fastest matrix
product measured between the items, and the engine's share of it, both by the operations of the model and by those that
the engine executes, which are fewer. With the parity environment (built by `make parity`) the stock pipeline is
measured in the same run.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from common.paths import KERNELS_FOLDER
from dev.bench.engine_child import Measured, percentile
from dev.bench.large_model import FOLDER, large_bundle, large_source, say
from dev.bench.parts import PARTS
from inference.server.runner_client.start import runner_environment

ORACLE = Path(".venv-parity/bin/python")
AIMS = {"float32": "≥ 85 %", "bfloat16": "≥ 60 %"}
CHILD_SECONDS = 1800.0
FILE_WIDTH = 160  # characters


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=12, help="answers of each kind")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--precisions", nargs="+", default=list(AIMS), choices=list(AIMS))
    parser.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="cpu: CPU seconds of a thread, where other programs use this machine; the stock pipeline is left out",
    )
    parser.add_argument("--kernels", choices=("compiled", "none"), default="compiled", help="none: torch's operations")
    parser.add_argument("--oracle", type=Path, default=ORACLE, help="Python that has the stock pipeline")
    options = parser.parse_args()
    rows = []
    for precision in options.precisions:
        folder, _ = large_bundle(precision)
        for threads in options.threads:
            say(f"measuring {precision} on {threads} threads")
            rows.append(_child(folder, precision, threads, options))
    stock = {}
    if options.oracle.exists() and options.clock == "wall":
        for threads in options.threads:
            say(f"measuring the stock pipeline on {threads} threads")
            stock[threads] = _stock(options.oracle, threads, max(3, options.items // 4))
    console = Console()
    if not console.is_terminal:
        console = Console(width=FILE_WIDTH)  # a file has no width of its own
    console.print(_table(rows, stock))
    console.print(_parts(rows))
    return 0


def _child(folder: Path, precision: str, threads: int, options: argparse.Namespace) -> Measured:
    command = [sys.executable, "-m", "dev.bench.engine_child", f"--folder={folder}", f"--precision={precision}"]
    command += [f"--threads={threads}", f"--items={options.items}", f"--clock={options.clock}"]
    if options.kernels == "compiled":
        command.append(f"--kernels={FOLDER / KERNELS_FOLDER}")
    done = subprocess.run(command, env=runner_environment(), stdout=subprocess.PIPE, check=True, timeout=CHILD_SECONDS)
    row = json.loads(done.stdout.splitlines()[-1])
    return Measured(**{**row, "first": tuple(row["first"]), "second": tuple(row["second"])})


def _stock(python: Path, threads: int, items: int) -> float:
    """Median seconds of the stock pipeline."""
    command = [str(python), "-m", "dev.bench.stock", f"--folder={large_source()}", f"--threads={threads}"]
    done = subprocess.run([*command, f"--items={items}"], stdout=subprocess.PIPE, check=True, timeout=CHILD_SECONDS)
    return float(done.stdout.splitlines()[-1])


def _parts(rows: list[Measured]) -> Table:
    table = Table(title="where the time of a first statement goes")
    table.add_column("part")
    for row in rows:
        table.add_column(f"{row.precision}, {row.threads}", justify="right")
    for part in PARTS:
        cells = (f"{1e3 * row.parts[part]:.0f} ms, {row.parts[part] / sum(row.parts.values()):.0%}" for row in rows)
        table.add_row(part, *cells)
    return table


def _table(rows: list[Measured], stock: dict[int, float]) -> Table:
    table = Table(title="one answer of a large OFA (473 M parameters), seconds")
    titles = ("precision", "threads", "p50", "p95", "very first", "2nd statement", "TFLOP", "TFLOP/s", "peak")
    for title in (*titles, "share", "aim", "executed", "stock", "faster"):
        table.add_column(title, justify="right")
    for row in rows:
        median = percentile(row.first, 0.5)
        speed = row.operations / median
        other = stock.get(row.threads)
        table.add_row(
            row.precision,
            str(row.threads),
            f"{median:.3f}",
            f"{percentile(row.first, 0.95):.3f}",
            f"{row.after_warm_up:.3f}",
            f"{percentile(row.second, 0.5):.3f}",
            f"{row.operations / 1e12:.3f}",
            f"{speed / 1e12:.3f}",
            f"{row.peak / 1e12:.3f}",
            f"{speed / row.peak:.0%}",
            AIMS[row.precision],
            f"{row.executed / median / row.peak:.0%}",
            f"{other:.2f}" if other else "–",
            f"{other / median:.1f}×" if other else "–",
        )
    return table


if __name__ == "__main__":
    raise SystemExit(main())
