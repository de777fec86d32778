"""An hour of random faults, as in `random`, while the whole stack has little memory; `--seconds` for another time.

The limit of the control group is 1.3 times what the stack and its callers' work use at rest: page cache fills what is
left, and the kernel reclaims it again and again. The seven promises must hold, and the kernel kills no process.
"""

from dev.chaos.catalog import Findings, Skipped, Task
from dev.chaos.steps import storm
from dev.harness.memory_group import NoMemoryGroup, memory_group

SECONDS = 3600.0


def run(task: Task) -> Findings:
    """Run the storm in a group."""
    try:
        with memory_group() as group:
            return storm.run_in(task, task.seconds or SECONDS, group)
    except NoMemoryGroup as reason:
        raise Skipped(str(reason)) from reason
