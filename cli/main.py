"""The entry point `hotslot`: starts fast for probes, loads the full command line for everything else."""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from types import FrameType

from common.exit_codes import ExitCode


def run(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code (see `hotslot --help`)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    # A probe runs every few seconds, so `healthcheck` does not import the command line's libraries.
    if words[:1] == ["healthcheck"]:
        from cli import healthcheck  # noqa: PLC0415  see above

        code = healthcheck.check(words[1:])
        sys.stderr.flush()
        os._exit(code)  # an ordinary exit waits 0.2 s for gRPC's threads
    with _sigterm_as_ctrl_c() if words[:1] == ["batch"] else contextlib.nullcontext():
        try:
            _run_command(words)
        except KeyboardInterrupt:
            sys.exit(ExitCode.INTERRUPTED)


@contextlib.contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """SIGTERM interrupts as Ctrl-C does: also while the command line's libraries are imported, which takes a second."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run_command(words: list[str]) -> None:
    from common.settings import silence_grpc_logs  # noqa: PLC0415  see above

    silence_grpc_logs()
    from cli import problems  # noqa: PLC0415  see above
    from cli.app import app  # noqa: PLC0415  see above

    try:
        app(args=words, prog_name="hotslot")
    except problems.EXPECTED as error:
        sys.exit(problems.report(error))


if __name__ == "__main__":
    run()
