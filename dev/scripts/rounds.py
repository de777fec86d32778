"""`make test-rounds`: the tests that drive real processes, again and again, every second time beside a busy process.

A test that fails in one of ten rounds has assumed how long something takes.
Run as `python -m dev.scripts.rounds --rounds 10 tests/server`; the exit code is 1 if a test has failed.
"""

import argparse
import contextlib
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator

_FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)


def main() -> int:
    """Run the rounds; print each round's last line, the output of one that failed, and how often each test failed."""
    parser = argparse.ArgumentParser(prog="python -m dev.scripts.rounds", description=__doc__)
    parser.add_argument("--rounds", type=int, default=10, help="how often all of them run")
    parser.add_argument("paths", nargs="*", help="files or folders of tests (default: all)")
    options = parser.parse_args()
    failed = Counter[str]()
    for number in range(1, options.rounds + 1):
        begun = time.monotonic()
        is_beside = number % 2 == 0
        with taking_a_core() if is_beside else contextlib.nullcontext():
            output = run_tests(options.paths)
        failures = set(_FAILED.findall(output))
        failed.update(failures)
        if failures:
            print(output, flush=True)
        how = "beside a busy process" if is_beside else "alone"
        last = output.strip().rpartition("\n")[2]
        print(f"round {number} {how}, {time.monotonic() - begun:.0f} s: {last}", flush=True)
    for test, count in failed.most_common():
        print(f"{test}: failed in {count} of {options.rounds} rounds")
    return 1 if failed else 0


@contextlib.contextmanager
def taking_a_core() -> Iterator[None]:
    """Another process computes meanwhile."""
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        busy.kill()
        busy.wait()


def run_tests(paths: list[str]) -> str:
    """Run those of the paths that drive processes; returns pytest's output."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "processes", *paths]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout if done.returncode in (0, 1) else f"ERROR {done.stdout}{done.stderr}"


if __name__ == "__main__":
    sys.exit(main())
