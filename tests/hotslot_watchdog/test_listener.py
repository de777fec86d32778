"""The event listener: supervisord's protocol, and what ends the stack."""

import io
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from common import logs
from common.exit_codes import ExitCode
from hotslot_watchdog import stack
from hotslot_watchdog.__main__ import handle
from hotslot_watchdog.protocol import Event, ProtocolBroken, events

PAYLOAD = b"processname:server groupname:hotslot from_state:BACKOFF"


def header(payload: bytes, name: str = "PROCESS_STATE_FATAL") -> bytes:
    """A header line as supervisord writes it."""
    return (
        f"ver:3.0 server:hotslot serial:21 pool:watchdog poolserial:10 eventname:{name} len:{len(payload)}\n".encode()
    )


def test_each_event_is_asked_for_and_acknowledged() -> None:
    """READY, the event, RESULT, READY, until supervisord is gone."""
    sink = io.BytesIO()
    (event,) = events(io.BytesIO(header(PAYLOAD) + PAYLOAD), sink)
    assert event == Event(
        "PROCESS_STATE_FATAL", {"processname": "server", "groupname": "hotslot", "from_state": "BACKOFF"}
    )
    assert sink.getvalue() == b"READY\nRESULT 2\nOKREADY\n"


def test_a_cut_event_ends_the_listener() -> None:
    """Half a payload means that supervisord is gone."""
    assert list(events(io.BytesIO(header(PAYLOAD) + PAYLOAD[:5]), io.BytesIO())) == []


@pytest.mark.parametrize("line", [b"hello\n", b"eventname:TICK_5 len:x\n", header(b"").replace(b"len:0", b"len:-1")])
def test_what_is_no_event_is_refused(line: bytes) -> None:
    """A malformed header is not guessed at."""
    with pytest.raises(ProtocolBroken):
        list(events(io.BytesIO(line), io.BytesIO()))


def test_a_payload_over_the_cap_is_refused() -> None:
    """Nothing is read of it."""
    with pytest.raises(ProtocolBroken, match="limit"):
        list(events(io.BytesIO(header(b"x" * 70_000)), io.BytesIO()))


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
    """An updater that cannot run costs no answer; a server that dies once is started again."""
    seen: list[int] = []
    with capture_logs():
        handle(Event(name, {"processname": program}), logs.get_logger(), seen.append)
    assert codes == seen


def test_the_exit_code_is_left_once(tmp_path: Path) -> None:
    """What was left is taken once; a later stack starts without it."""
    stack.leave(tmp_path, 70)
    assert stack.take(tmp_path) == 70
    assert stack.take(tmp_path) is None


def test_an_unreadable_exit_code_is_a_failure(tmp_path: Path) -> None:
    """Whoever wrote it wanted the stack to fail."""
    (tmp_path / "exit-code").write_text("?")
    assert stack.take(tmp_path) == ExitCode.INTERNAL_ERROR
