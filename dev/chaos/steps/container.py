"""L14, L15: an update of the demo model in a control group of limited memory, with too little and with just enough.

The plan is what the idle stack uses, plus what the larger of conversion and load needs by its own estimate. With less
the update is HELD; with 1.05 times the plan it is committed, also while page cache fills the group; no process is
killed. Then memory is taken away while a conversion runs: it is the process that the kernel ends, and the update
succeeds later.
"""

import json
import re
import subprocess
import time
from pathlib import Path

import psutil

from dev.chaos.catalog import Findings, Skipped, Task
from dev.demo.follow import Operator
from dev.demo.stack import AGAIN, BETTER, FIRST, DemoStack, build
from dev.harness.load import Load
from dev.harness.memory_group import NO_LIMIT, MemoryGroup, NoMemoryGroup, memory_group
from dev.harness.supervised import SupervisedStack
from hotslot.updates.v1 import updates_pb2
from inference.runner.conversion.memory_plan import estimate_bytes
from inference.runner.conversion.ofa_plan import plan_ofa

MIB = 1 << 20
LITTLE, ENOUGH = 0.8, 1.05  # of what an update needs beside the idle stack; of the plan
PATIENCE_SECONDS = 240.0
STEADY_SECONDS = 5.0
TORCH_BYTES = 100 * MIB  # a conversion that uses so much has begun to import torch
SHORT_BYTES = 24 * MIB  # left to it then


def run(task: Task) -> Findings:
    """Measure the idle stack, then update with too little, with enough, and with memory that is taken away."""
    task.say("making revisions, and computing their right answers with the bare engine")
    demo = build(task.folder / "demo")
    try:
        with memory_group() as group:
            demo.stack.group = group
            return _run(task, demo, group)
    except NoMemoryGroup as reason:
        raise Skipped(str(reason)) from reason


def _run(task: Task, demo: DemoStack, group: MemoryGroup) -> Findings:
    findings = Findings(count=3)
    with demo.stack as stack:
        operator = Operator(stack.state)
        operator.wait_ready(FIRST)
        stack.control.wait_ready(PATIENCE_SECONDS)
        stack.wait(lambda: _runners(stack), "there is a standby process", PATIENCE_SECONDS)
        with demo.load() as load:
            steady = _measure(group)
            needed = max(_conversion_bytes(demo, BETTER), _load_bytes(stack))
            task.say(f"idle: {steady // MIB} MiB; an update needs {needed // MIB} MiB")
            used = _update_with_too_little(demo, operator, group, steady + round(LITTLE * needed), findings)
            _update_with_enough(stack, operator, group, round(ENOUGH * (used + needed)), findings)
            task.say(f"{BETTER} is committed")
            _take_memory_away(demo, group, load, findings)
            group.limit(NO_LIMIT)
            stack.wait_committed(AGAIN, PATIENCE_SECONDS)
        operator.close()
        stack.end()
    report = load.report()
    findings.numbers |= {
        "version_of_groups": 1 if group.is_v1 else 2,
        "idle_mib": steady // MIB,
        "needed_mib": needed // MIB,
        "attempts": report.attempts,
        "lost": len(report.failed),
        "slowest_ms": round(1000 * report.slowest),
    }
    findings.expect(so=not report.failed, otherwise=f"{len(report.failed)} calls failed: {report.failed[:3]}")
    findings.expect(so=not report.wrong, otherwise=f"{len(report.wrong)} answers of no revision's own")
    return findings


def _update_with_too_little(
    demo: DemoStack, operator: Operator, group: MemoryGroup, limit: int, findings: Findings
) -> int:
    """Returns what the stack uses according to the plan."""
    group.limit(limit)
    demo.add_to_hub(BETTER)
    demo.stack.wait(lambda: _is_held(operator), f"{BETTER} is held", PATIENCE_SECONDS)
    message = operator.status().current.message
    _fill_with_cache(group, demo.folder, limit)
    health = demo.stack.control.status().ready
    findings.numbers |= {"little_mib": limit // MIB, "kills_with_too_little": group.kills}
    free = re.search(r"; (\d+) MiB are free", message)
    if free is None:
        raise AssertionError(f"it was held for another reason: {message}")
    findings.expect(so=health and not group.kills, otherwise=f"{group.kills} processes were killed with too little")
    return limit - int(free[1]) * MIB


def _update_with_enough(
    stack: SupervisedStack, operator: Operator, group: MemoryGroup, limit: int, findings: Findings
) -> None:
    group.limit(limit)
    operator.resume()
    stack.wait(lambda: operator.status().committed_revision == BETTER or _is_held(operator), "an end", PATIENCE_SECONDS)
    if _is_held(operator):
        raise AssertionError(f"with enough memory it was held: {operator.status().current.message}")
    stack.wait_committed(BETTER, PATIENCE_SECONDS)
    findings.numbers |= {"enough_mib": limit // MIB, "kills_with_enough": group.kills}
    findings.expect(so=not group.kills, otherwise=f"{group.kills} processes were killed with enough memory")


def _take_memory_away(demo: DemoStack, group: MemoryGroup, load: Load, findings: Findings) -> None:
    """Leave the group almost nothing while a conversion runs."""
    stack, before = demo.stack, group.kills
    stack.wait_alone(PATIENCE_SECONDS)  # the previous model has left, and a standby process has taken its place
    runners = stack.wait(lambda: _runners(stack), "both runners are there", PATIENCE_SECONDS)
    demo.add_to_hub(AGAIN)
    stack.wait(lambda: _conversion_of(group) > TORCH_BYTES, "a conversion imports torch", PATIENCE_SECONDS)
    group.limit(group.used + SHORT_BYTES)
    stack.wait(lambda: group.kills > before, "the kernel has killed a process", PATIENCE_SECONDS)
    load.wait_answers(50)
    killed = group.kills - before
    findings.numbers["kills_when_memory_was_taken_away"] = killed
    findings.expect(so=runners == _runners(stack), otherwise="a runner was killed, not only the conversion")


def _measure(group: MemoryGroup) -> int:
    """The largest use of some seconds, with callers."""
    ends, most = time.monotonic() + STEADY_SECONDS, 0
    while time.monotonic() < ends:
        most = max(most, group.used)
        time.sleep(0.05)
    return most


def _conversion_bytes(demo: DemoStack, revision: str) -> int:
    return estimate_bytes(plan_ofa(demo.source(revision)).locations.values())


def _load_bytes(stack: SupervisedStack) -> int:
    """What the runner has planned for the load of the first revision."""
    rows = [json.loads(line) for line in stack.log_path.read_text().splitlines() if '"load_planned"' in line]
    return int(rows[0]["needed_bytes"])


def _is_held(operator: Operator) -> bool:
    return operator.status().stage == updates_pb2.UPDATE_STAGE_HELD


def _fill_with_cache(group: MemoryGroup, folder: Path, size: int) -> None:
    """Fill the group with the pages of a file that was read twice, as a download and its checks do."""
    path = folder / "cached"
    script = f"head -c {size} /dev/zero > {path}; cat {path} {path} > /dev/null; rm {path}"
    subprocess.run(group.wrap(["sh", "-c", script]), check=True)


def _runners(stack: SupervisedStack) -> list[int]:
    """Process ids of the active and the standby runner; empty unless both are there."""
    slots = stack.control.status().slots
    return sorted(slot.pid for slot in slots) if all(slot.pid for slot in slots) else []


def _conversion_of(group: MemoryGroup) -> int:
    """Memory that the conversion in the group uses; 0 if there is none."""
    for pid in group.pids():
        try:
            process = psutil.Process(pid)
            if "inference.runner.convert" in process.cmdline():
                return int(process.memory_info().rss - process.memory_info().shared)
        except psutil.Error:
            continue
    return 0
