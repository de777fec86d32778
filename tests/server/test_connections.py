"""Connections that idle, send slowly or break do not affect other callers."""

import contextlib
import resource
import socket
import threading

import pytest

from dev.harness import http2
from dev.harness.answers import question
from dev.harness.stack import DEADLINE_SECONDS, Stack
from dev.harness.waiting import eventually
from hotslot.status.v1 import status_pb2
from tests.stack.wire import predict_raw

IDLE = 1000


@pytest.mark.fault("I17")
def test_a_thousand_idle_connections_do_not_delay_calls(stack: Stack) -> None:
    """1,000 connections without calls: calls are answered, and the descriptors are released afterwards."""
    resource.prlimit(stack.process.pid, resource.RLIMIT_NOFILE, (4096, 4096))
    with contextlib.ExitStack() as held:
        for _ in range(IDLE):
            way = held.enter_context(http2.connect(stack.port))
            way.sendall(http2.opening())
        for _ in range(20):
            stack.check(question(), timeout=10)
        assert stack.is_serving()
    eventually(lambda: descriptors(stack) < IDLE / 2, what="the descriptors are free again")


@pytest.mark.fault("I18")
def test_clients_with_slow_headers_do_not_delay_calls(stack: Stack) -> None:
    """Connections that send their preface byte by byte, or stop inside a header, do not affect others."""
    stop = threading.Event()
    ways = [http2.connect(stack.port) for _ in range(50)]
    opening = http2.opening() + http2.call("/x/y", b"", {})[:40]

    def drip() -> None:
        for byte in opening:
            for way in ways:
                with contextlib.suppress(OSError):
                    way.send(bytes([byte]))
            if stop.wait(0.005):
                return

    dripping = threading.Thread(target=drip)
    dripping.start()
    for _ in range(50):
        stack.check(question(), timeout=10)
    stop.set()
    dripping.join()
    for way in ways:
        way.close()
    assert stack.is_serving()


@pytest.mark.fault("I19")
@pytest.mark.parametrize(
    "noise", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", bytes(range(256)) * 40, b"\x16\x03\x01\x02\x00"]
)
def test_other_protocols_on_the_port_are_disconnected(stack: Stack, noise: bytes) -> None:
    """HTTP/1, TLS and random bytes are disconnected; calls are answered."""
    for _ in range(20):
        with http2.connect(stack.port) as way:
            way.sendall(noise)
    stack.check(question())


@pytest.mark.fault("I19")
def test_malformed_headers_write_nothing_to_standard_error(stack: Stack) -> None:
    """A client cannot fill the log with lines that are no events."""
    call = http2.call("/x/y", b"", {"grpc-timeout": "soon", "grpc-encoding": "none of these"})
    with http2.connect(stack.port) as way:
        way.settimeout(10)
        way.sendall(http2.opening() + call)
        assert way.recv(1)
    stack.check(question())

    assert "hpack" not in stack.process.errors()


@pytest.mark.fault("I14")
def test_connections_that_break_during_a_call_release_everything(stack: Stack) -> None:
    """The admission and leases of a broken connection's request are released."""
    path = "/hotslot.entailment.v1.EntailmentService/Predict"
    message = question("!slow 0.01").request().SerializeToString()
    for number in range(100):
        way = http2.connect(stack.port)
        whole = http2.opening() + http2.call(path, message, {})
        way.sendall(whole if number % 2 else whole[:-10])
        way.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset, no farewell
        way.close()

    stack.check(question(), timeout=DEADLINE_SECONDS)
    status = stack.control.status()
    assert [slot.state for slot in status.slots if slot.role == "ACTIVE"] == ["LOADED"]
    assert predict_raw(stack, question().request().SerializeToString()).results


def descriptors(stack: Stack) -> int:
    """Open descriptors of the server."""
    told = stack.status.GetServerStatus(status_pb2.GetServerStatusRequest(), timeout=DEADLINE_SECONDS)
    return int(told.resources.descriptors_used)
