"""I14: ten thousand clients that disconnect during their calls leave nothing behind and do not delay others.

They connect as fast as a server on two cores can accept them. A higher rate would be overload: with a thousand calls
that were not started yet, gRPC refuses new ones (CANCELLED) from any client.
"""

import contextlib
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import psutil

from dev.chaos.catalog import Findings, Task
from dev.chaos.promises import Promises
from dev.chaos.usage import look
from dev.harness import http2
from dev.harness.answers import question
from dev.harness.numbers import ms, percentile
from dev.harness.supervised import ScriptedStack

CLIENTS, AT_ONCE = 10_000, 4
CLIENTS_A_SECOND = 250.0
PATH = "/hotslot.entailment.v1.EntailmentService/Predict"
_RESET = b"\1\0\0\0\0\0\0\0"  # SO_LINGER: on, 0 seconds
MAX_MORE, MAX_GROWTH_MIB = 8, 8.0
REPORT_EVERY = 2000


def run(task: Task) -> Findings:
    """Run all clients."""
    clients = task.count or CLIENTS
    findings = Findings(count=clients)
    message = question("!slow 0.002").request().SerializeToString()
    whole = http2.opening() + http2.call(PATH, message, {})
    with ScriptedStack(task.folder) as stack, Promises(stack) as promises, stack.load() as load:
        load.wait_answers(200)
        server = stack.pid("server")
        before = look(server)
        began = time.monotonic()
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for done in range(0, clients, REPORT_EVERY):
                numbers = range(done, min(done + REPORT_EVERY, clients))
                list(pool.map(lambda number: come_and_go(stack.port, whole, number, began), numbers))
                task.say(f"{numbers.stop} were there: {look(server)}")
        stack.wait(
            lambda: psutil.Process(server).num_fds() <= before.descriptors + MAX_MORE, "their descriptors come back"
        )
        load.wait_answers(200)
        after = look(server)
        findings.troubles += promises.kept("v1.1.0", load)
        report = load.report()
    findings.numbers = {
        "attempts_beside": report.attempts,
        "failed_beside": len(report.failed),
        "p99_beside_ms": ms(percentile([one.seconds for one in report.answers], 0.99)),
        "server_descriptors": f"{before.descriptors} to {after.descriptors}",
        "server_threads": f"{before.threads} to {after.threads}",
        "server_resident_mib": f"{before.resident_mib:.0f} to {after.resident_mib:.0f}",
    }
    grown = after.resident_mib - before.resident_mib
    findings.expect(so=grown <= MAX_GROWTH_MIB, otherwise=f"the server has grown by {grown:.0f} MiB")
    findings.expect(so=after.threads <= before.threads + MAX_MORE, otherwise=f"{after.threads} threads are left")
    return findings


def come_and_go(port: int, whole: bytes, number: int, began: float) -> None:
    """Run one client: a complete or truncated request, then a reset or a normal close before any answer."""
    time.sleep(max(0.0, began + number / CLIENTS_A_SECOND - time.monotonic()))
    with contextlib.suppress(OSError), http2.connect(port) as way:
        way.sendall(cut(whole, number))
        if number % 2:
            way.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)


def cut(whole: bytes, number: int) -> bytes:
    """The request of a client: every second one complete, the others truncated at various points."""
    return whole if number % 4 < 2 else whole[: 30 + number % (len(whole) - 30)]  # noqa: PLR2004  half
