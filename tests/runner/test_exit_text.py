"""What is said of a runner that has ended."""

import pytest

from inference.server.runner_client.child import describe_exit


@pytest.mark.parametrize(
    ("code", "oom_kills", "expected"),
    [
        (-9, 2, "signal SIGKILL, out of memory: the kernel has ended 2 of the control group since its start"),
        (-9, 0, "signal SIGKILL"),
        (-11, 2, "signal SIGSEGV"),
        (70, 2, "exit code 70"),
    ],
)
def test_the_end_of_a_runner_names_the_memory_that_ran_out(code: int, oom_kills: int, expected: str) -> None:
    """In a container with a small limit nothing else tells why it was killed."""
    assert describe_exit(code, oom_kills) == expected
