"""`make load-report`: 100 clients for five minutes, with an update and a kill, as one HTML page with charts."""

import argparse
import math
import os
import platform
import signal
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from dev.harness.load import Load, LoadReport
from dev.harness.process import ROOT
from dev.harness.supervised import FIRST, ScriptedStack
from dev.production.load_page import LoadPage, Mark, render_page

PAGE = ROOT / "docs" / "load-report.html"
NEXT = "v1.1.0"
CALL_SECONDS = 0.005  # of the scripted device, for up to eight statements
SETTLE_SECONDS = 60.0  # for a runner that was killed


def main() -> int:
    """Run it and write the page; 1 if a call was lost or wrong."""
    parser = argparse.ArgumentParser(prog="make load-report", description=__doc__)
    parser.add_argument("--seconds", type=float, default=300.0, help="default: 300")
    parser.add_argument("--clients", type=int, default=100, help="default: 100")
    parser.add_argument("--pace", type=float, default=0.5, help="seconds of a client between two calls; default: 0.5")
    parser.add_argument("--out", type=Path, default=PAGE)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hotslot-") as folder:
        script = {"call_seconds": CALL_SECONDS}
        with ScriptedStack(Path(folder), script=script) as stack:
            _compute_answers(stack)
            load = stack.load(options.clients, options.pace)
            with load:
                marks, began = _play(stack, load, options.seconds)
            report = load.report()
            code = stack.end()
    page = _page_of(report, marks, began, options, code)
    options.out.write_text(render_page(page), encoding="utf-8")
    print(f"{page.sentence}\n{options.out}")
    return 1 if report.failed or report.wrong or code else 0


def _compute_answers(stack: ScriptedStack) -> None:
    """The next revision's answers, before it is published: its first answer comes while it is on trial."""
    hub, stack.hub = stack.hub, stack.folder / "prepared"
    stack.publish(NEXT)
    stack.hub = hub


def _play(stack: ScriptedStack, load: Load, seconds: float) -> tuple[list[Mark], float]:
    """An update after a third of the time, a kill after two; returns what happened when, and when it began."""
    began = time.monotonic()
    marks = []

    def mark(name: str) -> None:
        marks.append(Mark(time.monotonic() - began, name))

    _sleep_until(began + seconds / 3)
    stack.publish(NEXT)
    mark(f"{NEXT} published")
    stack.wait(lambda: stack.serving() == NEXT or None, f"{NEXT} answers")
    mark(f"{NEXT} on trial")
    stack.wait_committed(NEXT)
    mark(f"{NEXT} committed")
    _sleep_until(began + seconds * 2 / 3)
    os.kill(stack.control.active().pid, signal.SIGKILL)
    mark("runner killed")
    stack.wait(lambda: stack.is_serving() or None, "it serves again", SETTLE_SECONDS)
    load.wait_answers(10)
    mark("answers again")
    _sleep_until(began + seconds)
    return marks, began


def _sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.monotonic()))


def _page_of(report: LoadReport, marks: list[Mark], began: float, options: argparse.Namespace, code: int) -> LoadPage:
    points = [(one.at - began, one.seconds, one.revision) for one in report.answers if one.at >= began]
    took = sorted(seconds for _, seconds, _ in points)
    shares = ", ".join(f"{report.revisions[name]} by {name}" for name in (FIRST, NEXT))
    sentence = (
        f"{options.clients} clients without retries, {options.seconds:g} s: {report.attempts} calls, "
        f"{len(report.failed)} failed, {len(report.wrong)} wrong; {shares}; p50 {_quantile(took, 0.5):.0f} ms, "
        f"p99 {_quantile(took, 0.99):.0f} ms, slowest {report.slowest * 1000:.0f} ms, longest time without any answer "
        f"{report.gap_between(began, math.inf) * 1000:.0f} ms; the stack ended with {code}"
    )
    machine = f"{os.cpu_count()} cores, {platform.machine()}, load {os.getloadavg()[0]:.1f}"
    chosen = f"--seconds {options.seconds:g} --clients {options.clients} --pace {options.pace:g}"
    engine = f"scripted engine, {CALL_SECONDS * 1000:g} ms a device call"
    circumstances = f'{datetime.now(UTC):%Y-%m-%d %H:%M UTC}, {machine}; make load-report ARGS="{chosen}"; {engine}'
    return LoadPage(sentence, circumstances, points, marks, report.failed)


def _quantile(took: list[float], share: float) -> float:
    return took[min(len(took) - 1, int(len(took) * share))] * 1000 if took else 0.0


if __name__ == "__main__":
    sys.exit(main())
