"""B10: processes are stopped for minutes (SIGSTOP) and resumed (SIGCONT), idle and during an update.

The watchdog would restart a stopped process, which the last part shows; for the others it has a high failure threshold.
"""

import signal
import time
from dataclasses import dataclass

from dev.chaos.catalog import Findings, Task
from dev.chaos.promises import Promises
from dev.harness.load import Load, LoadReport, Refused
from dev.harness.numbers import gap_outside
from dev.harness.supervised import FIRST, ScriptedStack

SECONDS = 120.0
PATIENT = {"failure_threshold": 100}
AFTER_SECONDS = 5.0  # until callers whose call the pause ate have asked again, and the watchdog has looked again
PATIENCE_SECONDS = 75.0  # the watchdog's defaults: initial delay, failed checks, and supervisord's start
TRIAL_LEASE_SECONDS = 20.0


@dataclass(slots=True)
class PauseRun:
    """The state of one run."""

    stack: ScriptedStack
    findings: Findings
    seconds: float
    asleep: list[tuple[float, float]]  # intervals in which all processes were stopped, time.monotonic()

    def expect_same(self, program: str, pid: int) -> None:
        """Check that a program was not restarted."""
        now = self.stack.pid(program)
        self.findings.expect(so=now == pid, otherwise=f"the {program} was restarted: {pid}, then {now}")


def run(task: Task) -> Findings:
    """Run all parts."""
    findings = Findings()
    seconds = task.seconds or SECONDS
    (task.folder / "patient").mkdir()
    (task.folder / "shipped").mkdir()
    patient = ScriptedStack(task.folder / "patient", sections={"watchdog": PATIENT})
    with patient as stack, Promises(stack) as promises, stack.load() as load:
        run = PauseRun(stack, findings, seconds, [])
        idle(run, load)
        task.say("updater and watchdog were stopped while idle")
        in_a_trial(run)
        task.say("the updater was stopped during a trial")
        whole(run)
        task.say("all processes were stopped")

        def is_excused(call: Refused) -> bool:
            return any(since <= call.at <= until + AFTER_SECONDS for since, until in run.asleep)

        findings.troubles += promises.kept("v1.9.0", load, is_excused)
        report = load.report()
        tell(findings, report, run)
    shipped = ScriptedStack(task.folder / "shipped", sections={"watchdog": {"grace_seconds": 5}})
    with shipped as stack, Promises(stack) as promises, stack.load() as load:
        watched(PauseRun(stack, findings, seconds, []))
        findings.troubles += promises.kept("v1.9.0", load)
    return findings


def idle(run: PauseRun, load: Load) -> None:
    """Stop the idle updater: callers are not affected, and a revision published meanwhile is installed later."""
    stack = run.stack
    stopped = {program: stack.send_signal(program, signal.SIGSTOP) for program in ("updater", "watchdog")}
    stack.publish("v1.1.0")
    before = load.answers
    time.sleep(run.seconds)
    run.findings.expect(so=load.answers > before, otherwise="no request was answered while the updater was stopped")
    run.findings.expect(so=stack.serving() == FIRST, otherwise=f"{stack.serving()} serves without an updater")
    for program in stopped:
        stack.send_signal(program, signal.SIGCONT)
    stack.wait_committed("v1.1.0")
    for program, pid in stopped.items():
        run.expect_same(program, pid)
    stack.wait_alone()
    run.findings.count += len(stopped)


def in_a_trial(run: PauseRun) -> None:
    """Stop the updater during a trial: the server rolls back when the lease expires, and the updater retries."""
    stack = run.stack
    stack.arm("stop:OBSERVING")
    stack.send_signal("updater", signal.SIGKILL)
    stack.publish("v1.2.0")
    stack.wait(stack.is_on_trial, "it is on trial")
    pid = stack.pid("updater")
    began = time.monotonic()
    stack.wait(lambda: not stack.is_on_trial(), "the trial lease runs out", limit=run.seconds + TRIAL_LEASE_SECONDS)
    run.findings.numbers["trial_without_updater_seconds"] = round(time.monotonic() - began, 1)
    run.findings.expect(so=stack.serving() == "v1.1.0", otherwise=f"{stack.serving()} serves after the trial lease")
    time.sleep(max(0.0, run.seconds - (time.monotonic() - began)))
    stack.send_signal("updater", signal.SIGCONT)
    stack.wait_committed("v1.2.0")
    run.expect_same("updater", pid)
    quarantined = [row.revision for row in stack.status().quarantine]
    run.findings.expect(so=not quarantined, otherwise=f"in quarantine: {quarantined}")
    stack.wait_alone()
    run.findings.count += 1


def whole(run: PauseRun) -> None:
    """Stop all processes, as a suspended machine does: afterwards everything continues."""
    stack = run.stack
    pids = {program: stack.pid(program) for program in ("server", "updater", "watchdog")}
    began = time.monotonic()
    stack.send_signal_all(signal.SIGSTOP)
    time.sleep(run.seconds)
    stack.send_signal_all(signal.SIGCONT)
    woken = time.monotonic()
    run.asleep.append((began, woken))
    stack.wait(lambda: stack.control.status().ready, "it is ready again")
    run.findings.numbers["ready_after_waking_seconds"] = round(time.monotonic() - woken, 2)
    time.sleep(AFTER_SECONDS)
    for program, pid in pids.items():
        run.expect_same(program, pid)
    run.findings.count += 1


def watched(run: PauseRun) -> None:
    """With the default watchdog, an updater that is stopped during an update is killed, and its successor continues."""
    stack = run.stack
    stack.arm("stop:GATING")
    stack.send_signal("updater", signal.SIGKILL)
    stack.publish("v1.1.0")
    stopped = stack.wait(lambda: _stopped(stack), "the updater is stopped")
    began = time.monotonic()
    stack.wait(lambda: stack.pid("updater") not in (0, stopped), "another updater runs", PATIENCE_SECONDS)
    run.findings.numbers["watchdog_started_anew_seconds"] = round(time.monotonic() - began, 1)
    stack.wait_committed("v1.1.0")
    run.findings.count += 1


def tell(findings: Findings, report: LoadReport, run: PauseRun) -> None:
    """Record what callers measured."""
    ((_, until),) = run.asleep
    findings.numbers |= {
        "seconds_each": run.seconds,
        "attempts": report.attempts,
        "without_answer_while_all_stood_still": len(report.refusals),
        "longest_gap_but_for_that_seconds": round(gap_outside(report, run.asleep), 2),
        "first_answer_after_waking_seconds": round(
            min((one.at for one in report.answers if one.at >= until), default=0.0) - until, 2
        ),
    }


def _stopped(stack: ScriptedStack) -> int:
    return next((process.pid for process in stack.living() if process.status() == "stopped"), 0)
