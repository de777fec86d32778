"""The entry point `hotslot`: starts fast for probes, loads the full command line for everything else."""

import contextlib
import io
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from types import FrameType

from common.exit_codes import ExitCode

_MAX_SHOWN = 60  # characters of an argument in a message


def run(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code (see `hotslot --help`)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    is_probe = words[:1] == ["healthcheck"]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # for file names that are not UTF-8
    if sentence := _describe_undecodable([word for word in words if not os.path.lexists(word)], words):
        sys.stderr.write(f"error: {sentence}\n")
        sys.exit(ExitCode.FAILED if is_probe else ExitCode.WRONG_USE)  # 1 is grpc_health_probe's for wrong flags
    # A probe runs every few seconds, so `healthcheck` does not import the command line's libraries.
    if is_probe:
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
    from cli.app import make_app  # noqa: PLC0415  see above

    try:
        make_app(words)(args=words, prog_name="hotslot")
    except problems.EXPECTED as error:
        sys.exit(problems.report(error))
    except UnicodeEncodeError:  # of an argument that is also the name of a file
        sentence = _describe_undecodable(words, words)
        if not sentence:
            raise
        sys.exit(problems.report(problems.WronglyUsed(sentence)))


def _describe_undecodable(suspects: Sequence[str], words: Sequence[str]) -> str:
    """The sentence about the first of the suspects that is not UTF-8, which no request can hold; empty if all are."""
    for word in suspects:
        try:
            word.encode()
        except UnicodeEncodeError:
            position = words.index(word)
            flag = word.partition("=")[0] if word.startswith("-") else words[position - 1] if position else ""
            what = f"the value of {flag}" if flag.startswith("-") and len(flag) > 1 else f"argument {position + 1}"
            raw = word.encode("utf-8", "surrogateescape")
            shown = raw.decode("utf-8", "backslashreplace")[:_MAX_SHOWN]
            return f"{what} is not UTF-8 ({shown}); type it in a terminal that is set to UTF-8"
    return ""


if __name__ == "__main__":
    run()
