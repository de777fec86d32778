"""S1: callers without retries over fifty swaps, ten of bad revisions: no request fails, no answer mixes revisions."""

import random

from dev.chaos.catalog import Findings, Task
from dev.chaos.promises import Promises
from dev.harness.numbers import ms, percentile
from dev.harness.supervised import ScriptedStack

SWAPS, BAD_SHARE = 50, 0.2
REPORT_EVERY = 10


def run(task: Task) -> Findings:
    """Publish one after the other."""
    swaps = task.count or SWAPS
    bad = set(random.Random(task.seed).sample(range(1, swaps + 1), int(swaps * BAD_SHARE)))
    findings = Findings()
    # Bad ones may come three in a row: what the breaker does then is another step's.
    whole = ScriptedStack(task.folder, sections={"updater": {"breaker_first_seconds": 0.1}})
    with whole as stack, Promises(stack) as promises, stack.load() as load:
        for number in range(1, swaps + 1):
            wanted = swap(stack, f"v1.{number}.0", is_bad=number in bad, findings=findings)
            findings.count += 1
            if number % REPORT_EVERY == 0:
                task.say(f"{number} swaps, {load.answers} answers, the last one {wanted.lower()}")
        findings.troubles += promises.kept(f"v1.{swaps + 1}.0", load)
        report = load.report()
    took = [one.seconds for one in report.answers]
    findings.numbers = {
        "swaps": swaps,
        "bad": len(bad),
        "attempts": report.attempts,
        "failed": len(report.failed),
        "not_their_own_revisions": len(report.wrong),
        "revisions_that_answered": len(report.revisions),
        "longest_gap_ms": ms(report.longest_gap),
        "p99_ms": ms(percentile(took, 0.99)),
        "slowest_ms": ms(report.slowest),
    }
    return findings


def swap(stack: ScriptedStack, revision: str, *, is_bad: bool, findings: Findings) -> str:
    """Publish a revision and wait for its end; returns the expected outcome."""
    if is_bad:
        stack.publish_bad(revision)
    else:
        stack.publish(revision)
    ended = stack.wait(lambda: stack.outcome(revision), f"{revision} has ended")
    wanted = "ROLLED_BACK" if is_bad else "COMMITTED"
    findings.expect(so=ended == wanted, otherwise=f"{revision} ended {ended}, not {wanted}")
    return wanted
