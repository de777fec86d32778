"""For all tests: what the page of faults promises must have run; tests that drive processes are marked."""

import gc
import os
import signal
import sys

pytest_plugins = ["pytester", "tests.faults_ran", "tests.process_marks"]

# A shell that starts the run in the background ignores Ctrl-C for it, and so for every process that a test starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# What listens on this machine is asked directly, whatever the machine's proxy is; downloads may need that proxy.
_without_proxy = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or "localhost"
if _without_proxy != "*":
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = f"{_without_proxy},localhost,127.0.0.1,::1"

# Without byte code on the disk, each of the hundreds of processes that tests start compiles all that it imports.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False


def pytest_collection_finish() -> None:
    """Leave what was collected, a million objects that stay to the end, out of every later garbage collection."""
    gc.collect()
    gc.freeze()
