"""L19: the whole stack may open 512 files, and idle connections take all that clients can have.

The stack may not raise the limit: the step drops the capability for that. Meanwhile the watchdog and the health port
reach the server, an update is committed, and a killed server comes back; no liveness check fails.
"""

import contextlib
import os
import shutil
import signal
import socket
import time

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from common.paths import LIVENESS
from dev.chaos.catalog import Findings, Skipped, Task
from dev.harness.process import free_port
from dev.harness.supervised import ScriptedStack

LIMIT, CONNECTIONS = 512, 1000
PROBES, PROBE_SECONDS = 20, 1.0  # a probe's timeout, as Kubernetes has it by default
BACK_SECONDS = 30.0


def run(task: Task) -> Findings:
    """Open the connections, probe, update, kill the server, probe again."""
    if shutil.which("setpriv") is None:
        raise Skipped("setpriv is not there: apt-get install util-linux")
    findings = Findings(count=CONNECTIONS)
    health = free_port()
    stack = ScriptedStack(task.folder, sections={"health": {"port": health}})
    stack.prefix = (
        *("setpriv", "--bounding-set=-sys_resource", "sh", "-c"),
        *(f'ulimit -Sn {LIMIT} && ulimit -Hn {LIMIT} && exec "$@"', "sh"),
    )
    with stack, contextlib.ExitStack() as connections:
        for _ in range(CONNECTIONS):
            connections.enter_context(socket.create_connection(("127.0.0.1", stack.port)))
        time.sleep(1.0)
        opened = len(os.listdir(f"/proc/{stack.pid('server')}/fd"))  # noqa: PTH208  a number is all that is asked
        slowest = probe(health)
        stack.publish("v1.1.0")
        stack.wait_committed("v1.1.0")
        killed = time.monotonic()
        old = stack.send_signal("server", signal.SIGKILL)
        stack.wait(lambda: stack.pid("server") not in (0, old) and stack.is_serving(), "the server is back")
        back = time.monotonic() - killed
        slowest = max(slowest, probe(health))
        code = stack.end()
    failed = stack.log_path.read_text(encoding="utf-8").count("liveness_check_failed")
    findings.numbers = {
        "limit": LIMIT,
        "opened_by_the_server": opened,
        "slowest_probe_ms": round(1000 * slowest),
        "back_seconds": round(back, 2),
        "liveness_checks_failed": failed,
    }
    findings.expect(so=opened < LIMIT, otherwise=f"the server has {opened} files open: the limit does not hold")
    findings.expect(so=failed == 0, otherwise=f"{failed} liveness checks failed")
    findings.expect(so=back < BACK_SECONDS, otherwise=f"the killed server was back after {back:.1f} s")
    findings.expect(so=code == 0, otherwise=f"the stack ended with {code}")
    return findings


def probe(port: int) -> float:
    """Probe liveness on the health port, each time over a new connection; returns the slowest probe's seconds.

    Raises:
        grpc.RpcError: a probe failed.
    """
    slowest = 0.0
    for _ in range(PROBES):
        began = time.monotonic()
        with grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(service=LIVENESS), timeout=PROBE_SECONDS
            )
        slowest = max(slowest, time.monotonic() - began)
    return slowest
