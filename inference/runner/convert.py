"""A program of its own: foreign weights in, files ready to be sealed out.

    python -m inference.runner.convert --source DIR --into DIR --engine ofa --revision R --precision float32

Exit codes: 0 done, 2 wrong arguments, 3 refused with one JSON line {"reason", "message"} on stderr, 69
the starter is gone. On stdout one line a hundredth of the work that is done: "1" to "100".
Whoever starts it gives it limits, which it puts on itself before it reads or imports anything large;
and it ends with whoever started it. Torch is imported only for a source whose configuration, words and
tensors' names, types and shapes are in order.
"""

import argparse
import contextlib
import json
import os
import resource
import signal
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import NoReturn

from common.exit_codes import ExitCode
from common.source import PRECISIONS, ConversionRefused
from inference.runner.process import bind_to


def main(arguments: Sequence[str]) -> int:
    """Convert and return the exit code."""
    options = _parse(arguments)
    if options.parent and not bind_to(options.parent):
        return ExitCode.PARENT_GONE
    try:
        _limit_itself(options.max_memory_bytes, options.max_cpu_seconds, options.max_file_bytes)
        _convert(options)
    except ConversionRefused as error:
        return _refuse(error.reason, str(error))
    except (MemoryError, RuntimeError, ImportError) as error:
        if not _is_out_of_memory(error):
            raise
        return _refuse("MEMORY_LIMIT", f"the conversion needs more than {options.max_memory_bytes} bytes of memory")
    return 0


def _is_out_of_memory(error: Exception) -> bool:
    """Whether an error means that: torch and the dynamic linker say so in words only."""
    words = ("allocate memory", "not enough memory", "failed to map segment")
    return isinstance(error, MemoryError) or any(one in str(error) for one in words)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="convert", description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--source", type=Path, required=True, help="folder of a published revision")
    parser.add_argument("--into", type=Path, required=True, help="an empty folder that exists")
    parser.add_argument("--engine", required=True, help="engine that is to serve it")
    parser.add_argument("--revision", required=True, help="name of the revision, for people")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32", help="of the stored weights")
    parser.add_argument("--max-memory-bytes", type=int, default=0, help="limit of data; 0: none")
    parser.add_argument("--max-cpu-seconds", type=int, default=0, help="limit of CPU time; 0: none")
    parser.add_argument("--max-file-bytes", type=int, default=0, help="limit of one written file; 0: none")
    parser.add_argument("--parent", type=int, default=0, help="process to end with; 0: none")
    return parser.parse_args(arguments)


def _limit_itself(memory_bytes: int, cpu_seconds: int, file_bytes: int) -> None:
    signal.signal(signal.SIGXCPU, _on_cpu_limit)
    for kind, limit in (
        (resource.RLIMIT_DATA, memory_bytes),
        (resource.RLIMIT_CPU, cpu_seconds),
        (resource.RLIMIT_FSIZE, file_bytes),
    ):
        if limit:
            # A few seconds between the soft and the hard limit leave time to say which one was met.
            spare = 5 if kind == resource.RLIMIT_CPU else 0
            resource.setrlimit(kind, (limit, limit + spare))


def _convert(options: argparse.Namespace) -> None:
    # Only now, and in two steps: what is imported has to fall under the limits, and what is broken
    # or hostile on its face should meet as little of it as can be.
    from inference.runner.conversion.ofa_plan import plan_ofa  # noqa: PLC0415

    if options.engine != "ofa":
        raise ConversionRefused("ENGINE_UNKNOWN", f"engine {options.engine[:80]!r} is unknown, supported: 'ofa'")
    try:
        plan = plan_ofa(options.source)
        with ThreadPoolExecutor(1, "hash") as beside:  # torch's import takes as long
            hashing = beside.submit(plan.source.digest)
            import torch  # noqa: PLC0415

            from inference.runner.conversion.ofa import convert_plan  # noqa: PLC0415

        torch.set_num_threads(1)  # nobody waits for it, and whoever is waited for needs the others
        convert_plan(plan, hashing.result(), options.into, options.revision, options.precision, _Percent().show)
    except OSError as error:
        raise ConversionRefused("IO_FAILED", f"a file cannot be read or written: {error.strerror}") from error


class _Percent:
    """Tells whoever started this how far it is."""

    def __init__(self) -> None:
        self._told = 0

    def show(self, share: float) -> None:
        percent = int(100 * share)
        if percent > self._told:
            self._told = percent
            with contextlib.suppress(OSError):
                sys.stdout.write(f"{percent}\n")
                sys.stdout.flush()


def _on_cpu_limit(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise ConversionRefused("CPU_LIMIT", "the conversion needs more CPU time than it may use")


def _refuse(reason: str, message: str) -> int:
    with contextlib.suppress(OSError):
        sys.stderr.write(json.dumps({"reason": reason, "message": message}) + "\n")
    return ExitCode.CONVERSION_REFUSED


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # all files are closed; tidying up what torch holds takes half a second
