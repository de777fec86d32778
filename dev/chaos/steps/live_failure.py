"""S7: revisions that fail only on live traffic: no call fails, and they are rolled back within seconds."""

import time

from dev.chaos.catalog import Findings, Task
from dev.chaos.promises import Promises
from dev.harness.supervised import ScriptedStack
from dev.harness.waiting import eventually

TIMES = 5
LIMIT_SECONDS = 5.0  # from the first request that it failed to the previous one back in its place


def run(task: Task) -> Findings:
    """Publish them one after the other."""
    findings = Findings()
    took, lasted = [], []
    with ScriptedStack(task.folder) as stack, Promises(stack) as promises, stack.load() as load:
        for number in range(1, 1 + (task.count or TIMES)):
            revision = f"v1.{number}.0"
            stack.publish_bad(revision)
            began, failed, back = times(stack)
            took.append(back - failed)
            lasted.append(back - began)
            stack.wait(lambda name=revision: stack.outcome(name), f"{revision} has ended")  # type: ignore[misc]
            ended = stack.outcome(revision)
            findings.expect(so=ended == "ROLLED_BACK", otherwise=f"{revision} ended {ended}")
            # Three in a row would open the breaker, which is not what is looked at here.
            good = f"v1.{number}.1"
            stack.publish(good)
            stack.wait_committed(good)
            findings.count += 1
        findings.troubles += promises.kept("v1.100.0", load)
        report = load.report()
    findings.numbers = {
        "attempts": report.attempts,
        "failed": len(report.failed),
        "slowest_from_first_failure_seconds": round(max(took), 2),
        "longest_trial_seconds": round(max(lasted), 2),
    }
    findings.expect(
        so=max(took) <= LIMIT_SECONDS, otherwise=f"taken back {max(took):.1f} s after it had first failed a request"
    )
    return findings


def times(stack: ScriptedStack) -> tuple[float, float, float]:
    """When the next trial begins, when the previous slot first answers for it, and when it is over."""
    state = stack.wait(lambda: stack.control.status() if stack.is_on_trial() else None, "it is on trial")
    began, digest = time.monotonic(), state.trial.bundle_digest
    eventually(lambda: stack.control.stats(digest).answered_by_previous or not stack.is_on_trial(), what="it fails")
    failed = time.monotonic()
    eventually(lambda: not stack.is_on_trial(), 60, "it is taken back")
    return began, failed, time.monotonic()
