"""I17: a thousand connections that send only HTTP/2's opening, and their effect on active clients."""

import contextlib
import time

from dev.chaos.catalog import Findings, Task
from dev.chaos.promises import Promises
from dev.chaos.usage import look
from dev.harness import http2
from dev.harness.numbers import ms, percentile, took_between
from dev.harness.supervised import ScriptedStack

CONNECTIONS, SECONDS = 1000, 15.0
SLOWER_FACTOR, SLOWER_SECONDS = 1.5, 0.010  # of the median before, and a machine's noise


def run(task: Task) -> Findings:
    """Measure without the idle connections, then with them."""
    connections, seconds = task.count or CONNECTIONS, task.seconds or SECONDS
    findings = Findings(count=connections)
    with ScriptedStack(task.folder) as stack, Promises(stack) as promises, stack.load() as load:
        server = stack.pid("server")
        load.wait_answers(200)
        begun = time.monotonic()
        time.sleep(seconds)
        before = look(server)
        with contextlib.ExitStack() as held:
            for _ in range(connections):
                held.enter_context(http2.connect(stack.port)).sendall(http2.opening())
            there = time.monotonic()
            time.sleep(seconds)
            gone = time.monotonic()
            beside = look(server)
        stack.wait(lambda: look(server).descriptors <= before.descriptors + 8, "their descriptors come back")
        findings.troubles += promises.kept("v1.1.0", load)
        report = load.report()
    alone, crowded = took_between(report, begun, begun + seconds), took_between(report, there, gone)
    findings.numbers = {
        "p50_alone_ms": ms(percentile(alone, 0.5)),
        "p50_beside_ms": ms(percentile(crowded, 0.5)),
        "p99_alone_ms": ms(percentile(alone, 0.99)),
        "p99_beside_ms": ms(percentile(crowded, 0.99)),
        "descriptors_alone": before.descriptors,
        "descriptors_beside": beside.descriptors,
        "resident_mib_alone": round(before.resident_mib, 1),
        "resident_mib_beside": round(beside.resident_mib, 1),
    }
    held_open = beside.descriptors - before.descriptors
    findings.expect(so=held_open >= connections, otherwise=f"only {held_open} connections were held open")
    limit = SLOWER_FACTOR * percentile(alone, 0.5) + SLOWER_SECONDS
    half = percentile(crowded, 0.5)
    findings.expect(so=half <= limit, otherwise=f"the median is {ms(half)} ms beside them, more than {ms(limit)} ms")
    return findings
