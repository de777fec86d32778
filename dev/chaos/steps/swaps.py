"""S1, S9: callers without retries over five hundred swaps, a hundred of them of bad revisions.

No request fails, no answer mixes revisions; memory, descriptors, threads and tasks of server and updater stay the same.
Gaps and latencies are told, beside what the machine's own stalls add (measured by a process that only wakes up), and
not judged: they are those of a machine that may have other things to do; `make bench-swap` judges them.

After the first swaps (imports, caches, the allocator's arenas) each swap is followed by a sample.
"""

import json
import random
from collections.abc import Sequence
from datetime import datetime
from itertools import pairwise
from time import monotonic, sleep, time

from dev.chaos.catalog import Findings, Task
from dev.chaos.promises import Promises
from dev.chaos.usage import Look, judge, look
from dev.harness.load import LoadReport
from dev.harness.numbers import ms, percentile, took_between
from dev.harness.process import free_port
from dev.harness.settings import NEVER_HELD, Sections, merged
from dev.harness.stalls import Stalls, watching_stalls
from dev.harness.supervised import ScriptedStack

SWAPS, BAD_SHARE, SETTLING = 500, 0.2, 25
CALLERS = 4
WARM_UP_SECONDS = 0.3  # of each revision: its load lasts as long
REPORT_EVERY = 25
REST_EVERY, REST_SECONDS = 5, 1.5  # nothing but calls: the steady state
MAX_GROWTH = 0.02
Spans = Sequence[tuple[float, float]]  # of time.monotonic()


def run(task: Task) -> Findings:
    """Publish one after the other."""
    swaps = task.count or SWAPS
    bad = set(random.Random(task.seed).sample(range(1, swaps + 1), int(swaps * BAD_SHARE)))
    findings = Findings()
    port = free_port()
    # Bad ones may come three in a row: what the breaker does then is another step's.
    sections: Sections = {"updater": {"breaker_first_seconds": 0.1}, "server": {"metrics_port": port}}
    looks: dict[str, list[Look]] = {"server": [], "updater": []}
    rests = []
    whole = ScriptedStack(
        task.folder, sections=merged(NEVER_HELD, sections), script={"warm_up_seconds": WARM_UP_SECONDS}
    )
    with whole as stack, Promises(stack) as promises, watching_stalls() as stalls, stack.load(CALLERS) as load:
        pids = {program: stack.pid(program) for program in looks}
        for number in range(1, swaps + 1):
            wanted = swap(stack, f"v1.{number}.0", is_bad=number in bad, findings=findings)
            findings.count += 1
            if number % REST_EVERY == 0:
                stack.wait_alone()
                rests.append((monotonic(), monotonic() + REST_SECONDS))
                sleep(REST_SECONDS)
                if number > SETTLING:
                    looks["server"].append(look(pids["server"], port))
                    looks["updater"].append(look(pids["updater"]))
            if number % REPORT_EVERY == 0:
                now = ", ".join(f"{program} {rows[-1].resident_mib:.1f} MiB" for program, rows in looks.items() if rows)
                task.say(f"{number} swaps, {load.answers} answers, the last one {wanted.lower()}; {now}")
        same = {program: stack.pid(program) for program in looks}
        findings.expect(so=same == pids, otherwise=f"not the same processes: {pids}, then {same}")
        findings.troubles += promises.kept(f"v1.{swaps + 1}.0", load)
        report, loads = load.report(), loading_spans(stack)
    findings.numbers = tell_calls(report, rests, loads, stalls)
    findings.numbers |= {"swaps": swaps, "bad": len(bad)}
    for program, rows in looks.items():
        if rows:
            judge(program, rows, MAX_GROWTH, findings)
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


def loading_spans(stack: ScriptedStack) -> Spans:
    """When candidates were loaded, as the server's log says."""
    offset = time() - monotonic()
    begun, spans = 0.0, []
    for line in stack.log_path.read_text(encoding="utf-8", errors="replace").splitlines():
        if '"load_begun"' in line or '"load_ended"' in line:
            row = json.loads(line[line.index("{") :])
            at = datetime.fromisoformat(row["at"]).timestamp() - offset
            if row["event"] == "load_begun":
                begun = at
            else:
                spans.append((begun, at))
    return spans


def tell_calls(report: LoadReport, rests: Spans, loads: Spans, stalls: Stalls) -> dict[str, float | str]:
    """Latencies and gaps, beside those of the steady state."""
    steady = [took for span in rests for took in took_between(report, *span)]
    loading = [took for span in loads for took in took_between(report, *span)]
    once = percentile(steady, 0.5)
    pairs = list(pairwise(one.at for one in report.answers))
    own = max((b - a - stalls.within(a, b) for a, b in pairs), default=0.0)
    in_rests = [(a, b) for a, b in pairs if any(since <= a and b <= until for since, until in rests)]
    return {
        "attempts": report.attempts,
        "failed": len(report.failed),
        "not_their_own_revisions": len(report.wrong),
        "revisions_that_answered": len(report.revisions),
        "longest_gap_ms": ms(report.longest_gap),
        "longest_gap_without_stalls_ms": ms(own),
        "longest_gap_in_rests_ms": ms(max((b - a for a, b in in_rests), default=0.0)),
        "longest_stall_ms": ms(max((length for _, length in stalls.found), default=0.0)),
        "one_call_ms": ms(once),
        "p99_steady_ms": ms(percentile(steady, 0.99)),
        "p99_loading_ms": ms(percentile(loading, 0.99)),
        "slowest_ms": ms(report.slowest),
    }
