"""What a unary Predict costs the server, in calls of Python functions: CPU time that no busy machine changes."""

import sys
from pathlib import Path
from types import FrameType

import pytest

from common.clock import SystemClock
from common.traces import Sampler, encode_export
from dev.harness.collector import read_request
from inference.server.api import interceptors
from inference.server.trace_events import CallEncoder, CallFacts, CallTracer
from tests.server.one_call import CallableServer, serve_calls

MAX_PYTHON_CALLS = 284  # of the server and of the libraries under it but gRPC; each is 0.1 to 0.3 µs and its work
MAX_TRACE_CALLS = 12  # of them, for a recorded call
STAGES_OF_AN_ANSWER = ("receive", "queue", "prepare", "compute", "answer")
REPEATS = 30
_OWN_FILES = ("one_call.py", Path(__file__).name)


async def count_calls(server: CallableServer) -> int:
    """Calls of Python functions for one Predict, the fewest: a busy machine adds ticks of other tasks to some."""
    calls = 0
    found = []

    def count(frame: FrameType, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event == "call" and not frame.f_code.co_filename.endswith(_OWN_FILES)

    for _ in range(20):
        await server.predict()
    sys.setprofile(count)
    try:
        for _ in range(REPEATS):
            before = calls
            await server.predict()
            found.append(calls - before)
    finally:
        sys.setprofile(None)
    return min(found)


async def test_a_predict_makes_few_python_calls(tmp_path: Path) -> None:
    """From the interceptor over a runner's sockets to the encoded answer, with metrics and a log line.

    Of the server's CPU time for a call of 100 KB most is interpreted Python. A change that adds to it is either worth
    it, and raises the limit on purpose, or is not.
    """
    async with serve_calls(tmp_path) as server:
        assert await count_calls(server) <= MAX_PYTHON_CALLS


async def test_a_call_that_is_not_recorded_makes_no_call_for_traces(tmp_path: Path) -> None:
    """With a collector in the settings, too; a recorded one notes its facts with few, and has all its spans."""
    clock, recorded = SystemClock(), list[CallFacts]()
    async with serve_calls(tmp_path) as server:
        untraced = await count_calls(server)
    async with serve_calls(tmp_path, CallTracer(Sampler(0.0), clock, recorded.append)) as server:
        without = await count_calls(server)
    assert recorded == []
    assert without == untraced
    async with serve_calls(tmp_path, CallTracer(Sampler(1.0), clock, recorded.append)) as server:
        with_traces = await count_calls(server)
    spans = list(read_request(encode_export(CallEncoder(clock).encode(recorded[-1:]), {})))
    assert [span.name.rpartition("/")[2] for span in spans] == ["Predict", *STAGES_OF_AN_ANSWER]
    assert with_traces - without <= MAX_TRACE_CALLS


async def test_the_servers_own_ids_are_sampled_by_their_last_digits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison before a call is given to the tracer is that of the sampler."""
    recorded = list[CallFacts]()
    async with serve_calls(tmp_path, CallTracer(Sampler(0.5), SystemClock(), recorded.append)) as server:
        for made in ("f" * 16 + "0" * 16, "0" * 16 + "f" * 16):
            monkeypatch.setattr(interceptors, "new_request_id", lambda made=made: made)
            await server.predict()
    assert [call[4] for call in recorded] == ["f" * 16 + "0" * 16]
