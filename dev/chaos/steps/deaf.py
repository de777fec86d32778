"""U7: supervisord is stopped for half a minute under load, so the logs are not read: logging must not delay answers."""

import json
import signal
import time

from dev.chaos.catalog import Findings, Task
from dev.chaos.promises import Promises
from dev.harness.numbers import ms, percentile, took_between
from dev.harness.supervised import ScriptedStack

SECONDS, BEFORE_SECONDS = 30.0, 8.0
CALLERS, PACE_SECONDS = 6, 0.0  # enough lines to fill every pipe and queue on the way
LATE_FACTOR, LATE_LEAST_SECONDS = 5.0, 0.5  # of the slowest before; a busy machine makes some slow by itself


def run(task: Task) -> Findings:
    """Stop supervisord, and compare latencies."""
    findings = Findings()
    with ScriptedStack(task.folder) as stack, Promises(stack) as promises, stack.load(CALLERS, PACE_SECONDS) as load:
        began = time.monotonic()
        time.sleep(BEFORE_SECONDS)
        stopped = time.monotonic()
        stack.send_signal("supervisord", signal.SIGSTOP)
        time.sleep(task.seconds or SECONDS)
        woken = time.monotonic()
        stack.send_signal("supervisord", signal.SIGCONT)
        dropped = stack.wait(lambda: dropped_lines(stack), "the server reports dropped lines")
        findings.troubles += promises.kept("v1.1.0", load)
        report = load.report()
    before = took_between(report, began, stopped)
    meanwhile = took_between(report, stopped, woken)
    findings.count = len(meanwhile)
    limit = max(LATE_FACTOR * max(before), LATE_LEAST_SECONDS)
    findings.numbers = {
        "seconds_stopped": round(woken - stopped, 1),
        "answers_meanwhile": len(meanwhile),
        "slowest_before_ms": ms(max(before)),
        "slowest_meanwhile_ms": ms(max(meanwhile)),
        "p99_before_ms": ms(percentile(before, 0.99)),
        "p99_meanwhile_ms": ms(percentile(meanwhile, 0.99)),
        "log_lines_dropped": dropped,
    }
    findings.expect(
        so=max(meanwhile) <= limit, otherwise=f"an answer took {max(meanwhile):.2f} s, more than {limit:.2f} s"
    )
    return findings


def dropped_lines(stack: ScriptedStack) -> int:
    """The number of dropped lines that the server reports."""
    lines = stack.log_path.read_text(encoding="utf-8", errors="replace").splitlines()
    rows = [json.loads(line) for line in lines if '"log_lines_dropped"' in line]
    return sum(int(row["lines"]) for row in rows if row["process"] == "server")
