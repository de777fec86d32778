"""What a unary Predict costs the server, in calls of Python functions: CPU time that no busy machine changes."""

import sys
from pathlib import Path
from types import FrameType

from tests.server.one_call import serve_calls

MAX_PYTHON_CALLS = 343  # of the server and of the libraries under it but gRPC; each is 0.1 to 0.3 µs and its work
REPEATS = 10
_OWN_FILES = ("one_call.py", Path(__file__).name)


async def test_a_predict_makes_few_python_calls(tmp_path: Path) -> None:
    """From the interceptor over a runner's sockets to the encoded answer, with metrics and a log line.

    Of the server's CPU time for a call of 100 KB most is interpreted Python. A change that adds to it is either worth
    it, and raises the limit on purpose, or is not.
    """
    calls = 0

    def count(frame: FrameType, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event == "call" and not frame.f_code.co_filename.endswith(_OWN_FILES)

    async with serve_calls(tmp_path) as server:
        for _ in range(20):
            await server.predict()
        sys.setprofile(count)
        try:
            for _ in range(REPEATS):
                await server.predict()
        finally:
            sys.setprofile(None)

    assert calls / REPEATS <= MAX_PYTHON_CALLS
