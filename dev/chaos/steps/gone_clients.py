"""I14: ten thousand clients that are gone in the middle of their calls leave nothing, and hold nobody up.

They come as fast as a server on two cores can take them in. Faster is another thing, overload: beyond a thousand calls
that nobody has looked at yet gRPC turns new ones away by itself (CANCELLED), whoever they are from.
"""

import contextlib
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import psutil

from dev.chaos.catalog import Findings, Task
from dev.chaos.numbers import ms, percentile
from dev.chaos.promises import Promises
from dev.chaos.steps.flat import look
from dev.harness import http2
from dev.harness.answers import question
from dev.harness.supervised import ScriptedStack

CLIENTS, AT_ONCE = 10_000, 4
CLIENTS_A_SECOND = 250.0
PATH = "/hotslot.entailment.v1.EntailmentService/Predict"
_RESET = b"\1\0\0\0\0\0\0\0"  # SO_LINGER: on, 0 seconds
MAX_MORE, MAX_GROWTH_MIB = 8, 8.0
REPORT_EVERY = 2000


def run(task: Task) -> Findings:
    """Come and go."""
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
    """One client, in its turn: a request whole or cut, then a reset or a quiet end, before any answer."""
    time.sleep(max(0.0, began + number / CLIENTS_A_SECOND - time.monotonic()))
    with contextlib.suppress(OSError), http2.connect(port) as way:
        way.sendall(cut(whole, number))
        if number % 2:
            way.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)


def cut(whole: bytes, number: int) -> bytes:
    """Half of them are whole, the others end anywhere."""
    return whole if number % 4 < 2 else whole[: 30 + number % (len(whole) - 30)]  # noqa: PLR2004  half
