"""The table of `make bench-peers`."""

import subprocess
import sys

import psutil

from dev.bench.peer_servers import BARE, HOTSLOT, LITSERVE, Cpu, group_for
from dev.bench.peers import Case, Measured, format_table
from dev.bench.served import Bare, Delivered, may_begin_round
from dev.bench.served import format_table as format_served
from dev.harness.answers import Question

CASE = Case("unary", 16, 100_000)


def test_rates_and_cpu_time_are_shown_relative_to_bare_grpc() -> None:
    """A server with half the rate at three times the CPU time is shown as that, with its runners apart."""
    found = {
        (CASE, BARE): Measured(2.0, 2000, 0, Cpu(1.0)),
        (CASE, HOTSLOT): Measured(2.0, 1000, 1, Cpu(1.0, 0.5)),
    }

    row = format_table(found)[-1]

    assert row == (
        "| unary, 100 KB, 16 callers | hotslot | 500 | 0.50 | 1.500 | 3.00 | 1.000, 0.500 | 1 |"
    )  # fmt: skip


def test_litserve_gets_the_picture_as_a_file_of_a_form() -> None:
    """Its callers send what a browser sends."""
    group = group_for(LITSERVE, [Question(b"picture", ("a cat",), "")], "unary", 1)

    mark = group.metadata["Content-Type"].partition("boundary=")[2]
    form = group.requests[0]

    assert isinstance(form, bytes)
    assert form.split(f"--{mark}".encode())[1].endswith(b"\r\n\r\npicture\r\n")
    assert form.endswith(f"\r\n--{mark}--\r\n".encode())


def test_delivered_rows_are_shown_as_a_share_of_the_bare_engine() -> None:
    """Medians of the rounds; the bare engine is shown with its preparation, too."""
    found = {(8, HOTSLOT): Delivered([90.0, 80.0, 70.0], [0.9, 0.8, 0.7], [0.01] * 20, 0)}

    head, *_, row = format_served(found, [Bare(100, 1.0, 0.25)], 0.95)

    assert head.startswith("The bare engine computes 100 rows/s in full calls, 80 if")
    assert row == "| 8 | hotslot | 80 | 80% (goal 95%) | 70%, 90% | 10.0 | 10.0 | 0 |"


def test_a_round_begins_if_the_longest_so_far_would_end_in_time() -> None:
    """The first one begins in any case."""
    assert may_begin_round([], 4, -1.0)
    assert may_begin_round([30.0, 20.0], 4, 30.0)
    assert not may_begin_round([30.0, 20.0], 4, 29.0)
    assert not may_begin_round([30.0, 20.0], 2, 60.0)


def test_a_killed_benchmark_leaves_no_server() -> None:
    """A server has a session of its own: neither a signal to the benchmark's group nor SIGKILL would reach it."""
    program = (
        "import subprocess, time; from dev.bench.peer_servers import with_this_process\n"
        "subprocess.Popen(with_this_process(['sh', '-c', 'echo $$; exec sleep 60']), start_new_session=True)\n"
        "time.sleep(60)"
    )
    bench = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert bench.stdout is not None
    server = psutil.Process(int(bench.stdout.readline()))

    bench.kill()
    bench.communicate(timeout=10)

    assert psutil.wait_procs([server], timeout=10)[1] == []
