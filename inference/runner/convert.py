"""Program that converts a published revision to the files of a bundle.

    python -m inference.runner.convert --source DIR --into DIR --engine ofa --revision R --precision float32

Exit codes: 0 done, 2 wrong arguments, 3 refused with one JSON line {"reason", "message"} on stderr, 69 the parent
process has ended. Prints progress in percent to stdout, one line for each percent: "1" to "100".
It applies its resource limits before it reads or imports anything large, and ends with its parent. Torch is imported
only if configuration, vocabulary and the tensors' names, dtypes and shapes are valid, and if enough memory is free.
With a parent, it is the first process that the kernel ends when memory runs out.
"""

import argparse
import contextlib
import errno
import importlib
import json
import os
import resource
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, Protocol

from common.cgroup import read_available_bytes
from common.exit_codes import ExitCode
from common.explanation import write_explanation
from common.source import PRECISIONS, ConversionRefused, Source, refuse_unreadable
from inference.runner.conversion.tensor_location import TensorLocations
from inference.runner.process import MAX_OOM_SCORE_ADJ, bind_to_parent, set_oom_score


class Plan(Protocol):
    """A checked source; only its tensor data is unread."""

    @property
    def source(self) -> Source:
        """The folder."""
        ...

    @property
    def locations(self) -> TensorLocations:
        """Where its tensors are."""
        ...


# By engine: the function that makes a plan of a folder, without torch, and the one that converts the plan.
CONVERTERS: Mapping[str, tuple[str, str]] = {
    "ofa": ("inference.runner.conversion.ofa_plan:plan_ofa", "inference.runner.conversion.ofa:convert_plan"),
    "mgeo": ("inference.runner.conversion.mgeo_plan:plan_mgeo", "inference.runner.conversion.mgeo:convert_plan"),
}


def main(arguments: Sequence[str]) -> int:
    """Convert and return the exit code."""
    options = _parse(arguments)
    if options.parent:
        if not bind_to_parent(options.parent):
            return ExitCode.PARENT_GONE
        with contextlib.suppress(OSError):
            set_oom_score(MAX_OOM_SCORE_ADJ)
    try:
        _apply_limits(options.max_memory_bytes, options.max_cpu_seconds, options.max_file_bytes)
        _convert(options)
    except ConversionRefused as error:
        return _refuse(error)
    except (MemoryError, RuntimeError, ImportError) as error:
        if not _is_out_of_memory(error):
            raise
        message = f"the conversion needs more than {options.max_memory_bytes} bytes of memory"
        return _refuse(ConversionRefused("MEMORY_LIMIT", message))
    return 0


def _is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out; torch and the dynamic linker report it only in the message."""
    messages = ("allocate memory", "not enough memory", "failed to map segment")
    return isinstance(error, MemoryError) or any(message in str(error) for message in messages)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="convert", description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--source", type=Path, required=True, help="folder of a published revision")
    parser.add_argument("--into", type=Path, required=True, help="existing empty folder")
    parser.add_argument("--engine", required=True, help="engine of the bundle")
    parser.add_argument("--revision", required=True, help="name of the revision, for display")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32", help="of the stored weights")
    parser.add_argument("--explain", action="store_true", help="write explanation.json instead, without torch")
    parser.add_argument("--max-memory-bytes", type=int, default=0, help="limit of memory for data; 0: none")
    parser.add_argument("--max-cpu-seconds", type=int, default=0, help="limit of CPU time; 0: none")
    parser.add_argument("--max-file-bytes", type=int, default=0, help="limit of one written file; 0: none")
    parser.add_argument("--parent", type=int, default=0, help="process id of the parent, with which to end; 0: none")
    return parser.parse_args(arguments)


def _apply_limits(memory_bytes: int, cpu_seconds: int, file_bytes: int) -> None:
    signal.signal(signal.SIGXCPU, _on_cpu_limit)
    for kind, limit in (
        (resource.RLIMIT_DATA, memory_bytes),
        (resource.RLIMIT_CPU, cpu_seconds),
        (resource.RLIMIT_FSIZE, file_bytes),
    ):
        if limit:
            # The hard limit follows a few seconds later, which leaves time to report the soft one.
            spare = 5 if kind == resource.RLIMIT_CPU else 0
            resource.setrlimit(kind, (limit, limit + spare))


def _convert(options: argparse.Namespace) -> None:
    # Imported here so that the limits apply to imports, and in two steps so that a broken or hostile source is refused
    # before torch is imported.
    from inference.runner.conversion.memory_plan import check_memory  # noqa: PLC0415

    if options.explain:
        _explain(options)
        return
    if options.engine not in CONVERTERS:
        message = f"engine {options.engine[:80]!r} is unknown, supported: {', '.join(CONVERTERS)}"
        raise ConversionRefused("ENGINE_UNKNOWN", message)
    planner, converter = CONVERTERS[options.engine]
    try:
        plan: Plan = _import(planner)(options.source)
        check_memory(plan.locations.values(), read_available_bytes())
        with ThreadPoolExecutor(1, "hash") as pool:  # hashing takes about as long as importing torch
            hashing = pool.submit(plan.source.digest)
            import torch  # noqa: PLC0415

            convert_plan = _import(converter)

        torch.set_num_threads(1)  # a conversion is not urgent; serving processes need the other CPUs
        convert_plan(plan, hashing.result(), options.into, options.revision, options.precision, _PercentPrinter().print)
    except PermissionError as error:
        raise refuse_unreadable(error, options.source) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ConversionRefused("DISK_FULL", "the disk was full before the conversion was complete") from error
        raise ConversionRefused("IO_FAILED", f"a file cannot be read or written: {error.strerror}") from error


def _import(location: str) -> Callable[..., Any]:
    """The function at "module:function"."""
    module, _, function = location.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return found


def _explain(options: argparse.Namespace) -> None:
    """Write `explanation.json` instead of a bundle."""
    from inference.runner.conversion.explain import explain_folder  # noqa: PLC0415

    planners = {engine: _import(planner) for engine, (planner, _) in CONVERTERS.items()}
    write_explanation(options.into, explain_folder(options.source, planners))


class _PercentPrinter:
    """Prints progress to stdout, one line for each new percent."""

    def __init__(self) -> None:
        self._printed = 0

    def print(self, share: float) -> None:
        percent = int(100 * share)
        if percent > self._printed:
            self._printed = percent
            with contextlib.suppress(OSError):
                sys.stdout.write(f"{percent}\n")
                sys.stdout.flush()


def _on_cpu_limit(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise ConversionRefused("CPU_LIMIT", "the conversion needs more CPU time than its limit")


def _refuse(error: ConversionRefused) -> int:
    row: dict[str, object] = {"reason": error.reason, "message": str(error)}
    if error.needed_bytes:
        row |= {"needed_bytes": error.needed_bytes, "free_bytes": error.free_bytes}
    with contextlib.suppress(OSError):
        sys.stderr.write(json.dumps(row) + "\n")
    return ExitCode.CONVERSION_REFUSED


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # all files are closed; releasing torch would take half a second
