"""Chooses the inputs that reach all that a folder of inputs reaches, and counts the lines.

`python -m tests.fuzz.lines TARGET FOLDER…` prints names of inputs, and lines by module, as JSON.
"""

# ruff: noqa: T201  prints to a terminal

import importlib.util
import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from tests.fuzz.target import TARGETS, Check

Edge = tuple[str, int, int]  # file, line, next line
_NEW_LOCALS = 0x2  # a flag of functions' code, which that of classes lacks


@dataclass(frozen=True, slots=True)
class Reached:
    """What the inputs of a target reach."""

    inputs: list[str]  # names; small ones first, each reaches something that those before do not
    lines: dict[str, tuple[int, int, list[int]]]  # by module: lines in functions reached, all, those that are not


class Tracer:
    """Records steps from line to line in some files."""

    def __init__(self, files: Iterable[str]) -> None:
        self._files = set(files)
        self._found: set[Edge] = set()

    def trace(self, check: Check, data: bytes) -> set[Edge]:
        """Run a check and return its steps."""
        self._found = set()
        sys.settrace(self._enter)
        try:
            check(data)
        finally:
            sys.settrace(None)
        return self._found

    def _enter(self, frame: FrameType, _event: str, _argument: object) -> Any:  # noqa: ANN401  as sys.settrace has it
        file = frame.f_code.co_filename
        if file not in self._files:
            return None
        last = frame.f_code.co_firstlineno

        def step(frame: FrameType, event: str, _argument: object) -> Any:  # noqa: ANN401
            nonlocal last
            if event == "line":
                self._found.add((file, last, frame.f_lineno))
                last = frame.f_lineno
            return step

        return step


def measure(name: str, inputs: dict[str, bytes]) -> Reached:
    """Run a target's inputs, small ones first."""
    target = TARGETS[name]
    check = target.load_check()
    modules = {_find_file(module): module for module in target.modules}
    tracer = Tracer(modules)
    tracer.trace(check, b"")  # what is made once
    reached: set[Edge] = set()
    kept = []
    for one, data in sorted(inputs.items(), key=lambda row: (len(row[1]), row[0])):
        found = tracer.trace(check, data)
        if found - reached:
            kept.append(one)
            reached |= found
    lines: dict[str, tuple[int, int, list[int]]] = {}
    for file, module in modules.items():
        known = _function_lines(compile(Path(file).read_bytes(), file, "exec"))
        here = {line for where, _, line in reached if where == file}
        lines[module] = (len(known & here), len(known), sorted(known - here))
    return Reached(kept, lines)


def _find_file(module: str) -> str:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise RuntimeError(f"{module} has no file")
    return spec.origin


def _function_lines(module: CodeType) -> set[int]:
    """The lines of all functions, without their heads."""
    lines: set[int] = set()
    codes = [code for code in module.co_consts if isinstance(code, CodeType)]
    while codes:
        code = codes.pop()
        codes += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
        if code.co_flags & _NEW_LOCALS and not code.co_name.startswith("<"):
            lines |= {line for *_, line in code.co_lines() if line is not None and line != code.co_firstlineno}
    return lines


def main() -> int:
    """Print what the inputs reach and return the exit code."""
    inputs = {path.name: path.read_bytes() for folder in sys.argv[2:] for path in Path(folder).iterdir()}
    reached = measure(sys.argv[1], inputs)
    print(json.dumps([reached.inputs, reached.lines]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
