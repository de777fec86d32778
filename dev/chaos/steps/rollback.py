"""S8: an operator rolls the demo model back: warm, while the previous model is still loaded, and cold.

Uses the real engine and conversion, the demo's stack and its callers. Measures the time from the operator's call to the
last answer of the old revision, as callers see it.
"""

import time

from dev.chaos.catalog import Findings, Task
from dev.demo.follow import Followed, Operator
from dev.demo.stack import AGAIN, BETTER, FIRST, DemoStack, build
from dev.harness.load import Load, LoadReport
from dev.harness.numbers import ms
from dev.harness.supervised import SupervisedStack

WARM_SECONDS, COLD_SECONDS = 1.0, 60.0  # the limits
KEEP_WARM_SECONDS = 30  # long enough to find it warm on a busy machine
PATIENCE_SECONDS = 240.0
STEADY_SECONDS = 2.0


def run(task: Task) -> Findings:
    """Commit and roll back warm; commit again, wait until the previous model is unloaded, and roll back cold."""
    task.say("making revisions, and computing their right answers with the bare engine")
    demo = build(task.folder / "demo", KEEP_WARM_SECONDS)
    findings = Findings()
    with demo.stack as stack:
        operator = Operator(stack.state)
        operator.wait_ready(FIRST)
        stack.control.wait_ready(PATIENCE_SECONDS)
        with demo.load() as load:
            time.sleep(STEADY_SECONDS)
            commit(demo, operator, BETTER, task)
            warm = roll_back(stack, operator, load, BETTER)
            task.say(f"warm: {warm:.3f} s")
            operator.resume()
            commit(demo, operator, AGAIN, task)
            stack.wait_alone(PATIENCE_SECONDS)
            cold = roll_back(stack, operator, load, AGAIN)
            task.say(f"cold: {cold:.3f} s")
        operator.close()
        stack.end()
    judge(findings, load.report(), warm, cold)
    return findings


def commit(demo: DemoStack, operator: Operator, revision: str, task: Task) -> None:
    """Publish a revision, and wait until it is committed."""
    demo.add_to_hub(revision)
    followed = operator.follow(Followed(revision, time.monotonic()), lambda _stage: None)
    if followed.outcome != "COMMITTED":
        raise AssertionError(f"{revision} ended {followed.outcome}: {followed.message}")
    task.say(f"{revision} is committed")


def roll_back(stack: SupervisedStack, operator: Operator, load: Load, revision: str) -> float:
    """Roll back; returns the seconds from the call to the last answer of the old revision."""
    time.sleep(STEADY_SECONDS)
    began = time.monotonic()
    operator.rollback()
    stack.wait(lambda: stack.serving() == FIRST, f"{FIRST} serves", PATIENCE_SECONDS)
    time.sleep(STEADY_SECONDS)
    return max(0.0, (load.report().last_of(revision) or began) - began)


def judge(findings: Findings, report: LoadReport, warm: float, cold: float) -> None:
    """Compare the times with the limits."""
    findings.count = 2
    findings.numbers = {
        "warm_ms": ms(warm),
        "cold_seconds": round(cold, 2),
        "attempts": report.attempts,
        "failed": len(report.failed),
        "not_their_own_revisions": len(report.wrong),
        "longest_gap_ms": ms(report.longest_gap),
    }
    findings.expect(so=warm < WARM_SECONDS, otherwise=f"warm it took {warm:.2f} s")
    findings.expect(so=cold < COLD_SECONDS, otherwise=f"cold it took {cold:.1f} s")
    findings.expect(so=not report.failed, otherwise=f"{len(report.failed)} calls failed: {report.failed[:3]}")
    findings.expect(so=not report.wrong, otherwise=f"{len(report.wrong)} answers of no revision's own")
