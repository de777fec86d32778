"""The event listener: supervisord's event protocol, and which event ends the stack."""

import io
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from common import logs
from common.exit_codes import ExitCode
from hotslot_watchdog.__main__ import handle_event
from hotslot_watchdog.stack import take_exit_code, write_exit_code
from hotslot_watchdog.supervisor import ProtocolBroken, SupervisorEvent, read_events

PAYLOAD = b"processname:server groupname:hotslot from_state:BACKOFF"


def header(payload: bytes, name: str = "PROCESS_STATE_FATAL") -> bytes:
    """A header line as supervisord writes it."""
    return (
        f"ver:3.0 server:hotslot serial:21 pool:watchdog poolserial:10 eventname:{name} len:{len(payload)}\n".encode()
    )


def test_each_event_is_asked_for_and_acknowledged() -> None:
    """READY, the event, RESULT, READY, until supervisord closes the stream."""
    sink = io.BytesIO()
    (event,) = read_events(io.BytesIO(header(PAYLOAD) + PAYLOAD), sink)
    assert event == SupervisorEvent(
        "PROCESS_STATE_FATAL", {"processname": "server", "groupname": "hotslot", "from_state": "BACKOFF"}
    )
    assert sink.getvalue() == b"READY\nRESULT 2\nOKREADY\n"


def test_a_truncated_event_ends_the_listener() -> None:
    """A payload that ends early means that supervisord has ended."""
    assert list(read_events(io.BytesIO(header(PAYLOAD) + PAYLOAD[:5]), io.BytesIO())) == []


@pytest.mark.parametrize("line", [b"hello\n", b"eventname:TICK_5 len:x\n", header(b"").replace(b"len:0", b"len:-1")])
def test_a_malformed_header_is_refused(line: bytes) -> None:
    """It raises `ProtocolBroken`."""
    with pytest.raises(ProtocolBroken):
        list(read_events(io.BytesIO(line), io.BytesIO()))


def test_a_payload_over_the_limit_is_refused() -> None:
    """It raises `ProtocolBroken` before the payload is read."""
    with pytest.raises(ProtocolBroken, match="limit"):
        list(read_events(io.BytesIO(header(b"x" * 70_000)), io.BytesIO()))


@pytest.mark.fault("U2")
@pytest.mark.parametrize(
    ("name", "program", "codes"),
    [
        ("PROCESS_STATE_FATAL", "server", [ExitCode.INTERNAL_ERROR]),
        ("PROCESS_STATE_FATAL", "updater", []),
        ("PROCESS_STATE_EXITED", "server", []),
        ("PROCESS_STATE_BACKOFF", "server", []),
        ("TICK_5", "server", []),
    ],
)
def test_only_a_server_that_is_given_up_ends_the_stack(name: str, program: str, codes: list[int]) -> None:
    """The stack goes on without an updater, and a server that dies once is started again."""
    seen: list[int] = []
    with capture_logs():
        handle_event(SupervisorEvent(name, {"processname": program}), logs.get_logger(), seen.append)
    assert codes == seen


def test_the_exit_code_is_taken_once(tmp_path: Path) -> None:
    """Taking it deletes it, so a later stack starts without it."""
    write_exit_code(tmp_path, 70)
    assert take_exit_code(tmp_path) == 70
    assert take_exit_code(tmp_path) is None


def test_an_unreadable_exit_code_is_a_failure(tmp_path: Path) -> None:
    """It is written only for a failure."""
    (tmp_path / "exit-code").write_text("?")
    assert take_exit_code(tmp_path) == ExitCode.INTERNAL_ERROR
