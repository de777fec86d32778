"""S9: a hundred swaps through the updater: memory, descriptors and threads of server and updater do not grow.

After the first swaps (imports, caches, the allocator's arenas) each swap is followed by a sample. Memory is judged by
the slope of a straight line through all samples, times a hundred swaps; descriptors and threads by their maximum in the
last fifth compared with that in the first fifth.
"""

from collections.abc import Sequence

import numpy as np

from dev.chaos.catalog import Findings, Task
from dev.chaos.promises import Promises
from dev.chaos.steps.swaps import swap
from dev.chaos.usage import Look, look
from dev.harness.supervised import ScriptedStack

SWAPS, SETTLING = 100, 15
MAX_GROWTH_MIB = 8.0  # a hundred swaps; the server has about 60 MiB, the updater about as much
MAX_MORE = 3  # descriptors or threads: what happens to be open at a look differs by a few
REPORT_EVERY = 20


def run(task: Task) -> Findings:
    """Swap, and take a sample each time."""
    swaps = task.count or SWAPS
    findings = Findings()
    looks: dict[str, list[Look]] = {"server": [], "updater": []}
    with ScriptedStack(task.folder) as stack, Promises(stack) as promises, stack.load(clients=2, pace=0.05) as load:
        pids = {program: stack.pid(program) for program in looks}
        for number in range(1, SETTLING + swaps + 1):
            swap(stack, f"v1.{number}.0", is_bad=False, findings=findings)
            stack.wait_alone()
            findings.count += 1
            if number > SETTLING:
                for program, pid in pids.items():
                    looks[program].append(look(pid))
            if number % REPORT_EVERY == 0:
                task.say(f"{number} swaps: {[rows[-1:] for rows in looks.values()]}")
        same = {program: stack.pid(program) for program in looks}
        findings.expect(so=same == pids, otherwise=f"not the same processes: {pids}, then {same}")
        findings.troubles += promises.kept(f"v1.{SETTLING + swaps + 1}.0", load)
    for program, rows in looks.items():
        judge(program, rows, findings)
    return findings


def judge(program: str, rows: Sequence[Look], findings: Findings) -> None:
    """Compare the last samples with the first."""
    growth = 100 * slope([row.resident_mib for row in rows])
    findings.numbers[f"{program}_resident_mib"] = round(rows[-1].resident_mib, 1)
    findings.numbers[f"{program}_growth_mib_per_100_swaps"] = round(growth, 2)
    findings.expect(so=growth <= MAX_GROWTH_MIB, otherwise=f"{program} grows by {growth:.1f} MiB in a hundred swaps")
    fifth = max(1, len(rows) // 5)
    for name in ("descriptors", "threads"):
        first = max(getattr(row, name) for row in rows[:fifth])
        last = max(getattr(row, name) for row in rows[-fifth:])
        findings.numbers[f"{program}_{name}"] = f"{first} to {last}"
        findings.expect(so=last <= first + MAX_MORE, otherwise=f"{program} has {last} {name}, {first} at first")


def slope(values: Sequence[float]) -> float:
    """The slope of the regression line through values at 0, 1, 2, …; 0 for fewer than two."""
    return float(np.polyfit(range(len(values)), values, 1)[0]) if len(values) > 1 else 0.0
