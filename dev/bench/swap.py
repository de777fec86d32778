"""`make bench-swap`: what callers notice of swaps and deaths, on the demo model.

Sixteen clients without retries, 10 s deadlines, every attempt counted, every answer compared with what the bare engine
says of that revision. Swaps between v1.0.0 and v1.0.1 (the same weights with permuted answers); then the active runner
is killed (SIGKILL), then stopped (SIGSTOP).
"""

import argparse
import asyncio
import os
import signal
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from dev.bench.stack import (
    SHAPES,
    ControlClient,
    Tally,
    answers_of,
    callers,
    golden_items,
    running_server,
    seal_revisions,
)
from examples.shapes.permute import permute_directory

PORT = 50173
CLIENTS = 16
ITEMS = 200
SETTLE_SECONDS = 2.0
MIN_DISAGREEMENT = 0.3


@dataclass(frozen=True, slots=True)
class Row:
    """One thing that was done under load."""

    what: str
    gap_ms: float  # longest time without any answer
    aim: str


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--swaps", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hotslot-") as folder:
        return asyncio.run(measure(Path(folder), options.swaps))


async def measure(folder: Path, swaps: int) -> int:
    """The whole run; 0 if nothing failed."""
    permute_directory(SHAPES / "v1.0.0", folder / "v1.0.1")
    state = folder / "state"
    bundles = seal_revisions(state, {"v1.0.0": SHAPES / "v1.0.0", "v1.0.1": folder / "v1.0.1"})
    items = golden_items(ITEMS)
    expected = {name: answers_of(state, bundle, items) for name, bundle in bundles.items()}
    disagreement = differing(expected["v1.0.0"], expected["v1.0.1"])
    rows: list[Row] = []
    with running_server(folder, PORT):
        control = ControlClient(state)
        await control.ready()
        async with callers(PORT, CLIENTS, items, expected) as tally:
            await asyncio.sleep(SETTLE_SECONDS)
            rows.append(Row("steady", gap(tally), ""))
            steady = sorted(tally.took)
            gaps, loads = [], []
            for number in range(swaps):
                tally.begin()
                loads.append(await control.swap(bundles[("v1.0.1", "v1.0.0")[number % 2]].bundle_digest))
                gaps.append(gap(tally))
            one = 1000 * steady[len(steady) // 2]
            rows.append(Row(f"{swaps} swaps", max(gaps), f"{one:.0f} (one call) + 50"))
            rows.append(await death(control, tally, signal.SIGKILL, "1000"))
            rows.append(await death(control, tally, signal.SIGSTOP, "1000 + batch limit"))
        await control.close()
    show(rows, tally, disagreement, max(loads))
    return 1 if tally.failed or tally.wrong or disagreement < MIN_DISAGREEMENT else 0


async def death(control: ControlClient, tally: Tally, number: signal.Signals, aim: str) -> Row:
    """End or stop the active runner, and wait until the model is ready again."""
    await control.ready()
    await asyncio.sleep(SETTLE_SECONDS)
    pid = await control.active_pid()
    tally.begin()
    os.kill(pid, number)
    for _ in range(1000):
        await asyncio.sleep(0.02)
        if await control.active_pid() not in (pid, 0):
            break
    await control.ready()
    await asyncio.sleep(SETTLE_SECONDS)
    return Row(f"active runner: {number.name}", gap(tally), aim)


def differing(
    one: dict[str, list[tuple[float, float, float]]], other: dict[str, list[tuple[float, float, float]]]
) -> float:
    """Share of items on which two revisions give different labels."""
    pairs = [(a, b) for name in one for a, b in zip(one[name], other[name], strict=True)]
    return sum(a.index(max(a)) != b.index(max(b)) for a, b in pairs) / len(pairs)


def gap(tally: Tally) -> float:
    """Longest time without an answer since `begin`, ms."""
    return 1000 * tally.gap


def show(rows: list[Row], tally: Tally, disagreement: float, slowest_load: float) -> None:
    """Print the table."""
    table = Table(title=f"{CLIENTS} clients without retries, demo model")
    for name in ("what", "longest gap, ms", "aim, ms"):
        table.add_column(name, justify="left" if name == "what" else "right")
    for row in rows:
        table.add_row(row.what, f"{row.gap_ms:.0f}", row.aim)
    console = Console()
    console.print(table)
    console.print(
        f"attempts {tally.attempts}, failed {len(tally.failed)}, not their own revision's answer {tally.wrong}; "
        f"answers {tally.by_revision}; the revisions disagree on {disagreement:.0%} of the items; "
        f"slowest load {slowest_load:.2f} s"
    )
    for sentence in sorted(set(tally.failed))[:5]:
        console.print(sentence)


if __name__ == "__main__":
    sys.exit(main())
