"""The table at the end of the run."""

from rich.console import Console
from rich.table import Table

from dev.demo.follow import Followed
from dev.demo.run import DemoRun
from dev.demo.stack import OVERFLOWING, WORSE
from dev.harness.load import LoadReport

LOADING = ("STAGING", "VERIFYING", "GATING")


def show(run: DemoRun, console: Console) -> None:
    """Print the callers' results."""
    report, updates = run.load.report(), run.updates
    table = Table(title=f"What callers of {run.demo.model} saw", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    loading = [f"{revision} {stage}" for revision in updates for stage in LOADING]
    rows = {
        "attempts": str(report.attempts),
        "failed": str(len(report.failed)),
        "not their own revision's answer": str(len(report.wrong)),
        "answers by revision": ", ".join(f"{name}: {count}" for name, count in sorted(report.revisions.items())),
        "given by the previous slot in a trial": str(run.by_previous),
        "longest time without an answer": f"{1000 * report.longest_gap:.0f} ms",
        "99 of 100 answers within, steady": f"{1000 * report.p99(['steady']):.0f} ms",
        "… while a candidate is made and loaded": f"{1000 * report.p99(loading):.0f} ms",
    }
    if run.killed_at:
        rows["… while the runner was killed"] = f"{1000 * report.gap_between(run.killed_at, run.back_at):.0f} ms"
        rows["runner killed → model ready"] = f"{run.back_at - run.killed_at:.2f} s"
    for revision, followed in updates.items():
        if revision != WORSE:
            rows[f"{revision} published → first answer"] = _way(report, followed)
    rows[f"{OVERFLOWING} taken back"] = _taken_back(report, updates.get(OVERFLOWING))
    for name, value in rows.items():
        table.add_row(name, value)
    console.print(table)


def _way(report: LoadReport, followed: Followed) -> str:
    """Seconds from publication to the first answer, and of each stage before it."""
    answered = report.first_of(followed.revision, followed.published)
    if answered is None:
        return "never"
    marks = [("waiting", followed.published), *followed.stages]
    ends = [at for _, at in marks[1:]] + [answered]
    parts = [
        f"{name.lower().replace('_', ' ')} {min(end, answered) - at:.1f}"
        for (name, at), end in zip(marks, ends, strict=True)
        if at < answered
    ]
    return f"{answered - followed.published:.1f} s ({', '.join(parts)})"


def _taken_back(report: LoadReport, followed: Followed | None) -> str:
    """How long the revision answered, and the time from the verdict to its last answer."""
    if followed is None:
        return "never"
    first, last, judged = report.first_of(OVERFLOWING), report.last_of(OVERFLOWING), followed.began("ROLLING_BACK")
    if first is None or last is None:
        return "it never answered"
    gone = max(0.0, last - judged) if judged is not None else 0.0
    return f"{last - first:.1f} s after its first answer; its last answer {gone:.2f} s after the verdict"
