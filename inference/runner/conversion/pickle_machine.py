"""A machine for the few opcodes with which torch writes down named tensors; it calls and imports nothing.

Pickle is a language for programs. Of its 68 opcodes this knows those that torch.save needs, of all
names in the world those in `_GLOBALS`, and even these only as words: what a pickle would build is
described by plain records.
"""

import io
import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from common.source import ConversionRefused
from inference.runner.conversion.places import refuse, shown

_DTYPES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
_TABLE = "collections OrderedDict"
_TENSORS = ("torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor")
_PARAMETER = "torch._utils _rebuild_parameter"
_STORAGES = {f"torch {name}": dtype for name, dtype in _DTYPES.items()}
_GLOBALS = frozenset({_TABLE, *_TENSORS, _PARAMETER, *_STORAGES})
_STORAGE_WORDS = 5  # of a storage's name: "storage", type, key, device, numbers; old files add a view


@dataclass(frozen=True, slots=True)
class Global:
    """A name that would be imported."""

    name: str  # "module name"


@dataclass(frozen=True, slots=True)
class Storage:
    """Memory that tensors would share."""

    dtype: str
    key: str
    count: int  # numbers


@dataclass(frozen=True, slots=True)
class Pickled:
    """A tensor, as a pickle describes it; nothing of it is checked yet."""

    storage: Storage
    offset: object  # numbers
    shape: object
    strides: object  # numbers


class Table(dict[str, Any]):
    """An OrderedDict that only remembers its items."""


class _Mark:
    """Stands on the stack where a list of items begins."""


_MARK = _Mark()


@dataclass(slots=True)
class _Machine:
    """Stack and memory of one pickle."""

    file: str
    stack: list[Any] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def items(self) -> list[Any]:
        """Take everything down to the mark."""
        taken: list[Any] = []
        while (item := self.stack.pop()) is not _MARK:
            taken.append(item)
        return taken[::-1]

    def pops(self, count: int) -> tuple[Any, ...]:
        """Take some, in the order in which they were put."""
        taken = tuple(self.stack.pop() for _ in range(count))
        return taken[::-1]


def run_pickle(file: str, data: io.BytesIO) -> object:
    """Read one pickle and leave `data` behind it.

    Args:
        file: its name, for sentences.
        data: a bounded piece of a file.

    Returns:
        Strings, numbers, tuples, lists and the records of this module.

    Raises:
        ConversionRefused: it is damaged, or does anything but describe tensors.
    """
    machine = _Machine(file)
    try:
        for opcode, argument, _ in pickletools.genops(data):
            step = _STEPS.get(opcode.name)
            if step is None:
                refuse(f"{file} uses the pickle opcode {opcode.name}, supported: those of a plain state dict")  # rule 1
            step(machine, argument)
        return machine.stack.pop()
    except ConversionRefused:
        raise
    except (ValueError, IndexError, KeyError, TypeError):
        refuse(f"{file} is damaged: a pickle in it makes no sense")


def _push(machine: _Machine, argument: object) -> None:
    machine.stack.append(argument)


def _global(machine: _Machine, argument: str) -> None:
    if argument not in _GLOBALS:
        refuse(f"{machine.file} wants {shown(argument).replace(' ', '.')}, supported: tensors alone")  # rule 1
    machine.stack.append(Global(argument))


def _stack_global(machine: _Machine, _argument: object) -> None:
    module, name = machine.pops(2)
    if not isinstance(module, str) or not isinstance(name, str):
        raise TypeError
    _global(machine, f"{module} {name}")


def _reduce(machine: _Machine, _argument: object) -> None:
    called, arguments = machine.pops(2)
    if not isinstance(called, Global) or type(arguments) is not tuple:
        raise TypeError
    if called.name == _TABLE and not arguments:
        machine.stack.append(Table())
    elif called.name in _TENSORS and isinstance(arguments[0], Storage):
        machine.stack.append(Pickled(*arguments[:4]))
    elif called.name == _PARAMETER and isinstance(arguments[0], Pickled):
        machine.stack.append(arguments[0])
    else:
        raise TypeError


def _build(machine: _Machine, _argument: object) -> None:
    """A state dict carries versions of its modules along; they are not looked at."""
    machine.stack.pop()
    if not isinstance(machine.stack[-1], Table):
        raise TypeError


def _storage(machine: _Machine, _argument: object) -> None:
    word, kind, key, _device, count, *rest = machine.stack.pop()
    if word != "storage" or not isinstance(kind, Global) or not isinstance(key, str) or type(count) is not int:
        raise TypeError
    if any(one is not None for one in rest):
        refuse(f"{machine.file} holds views of storages, which only very old files do; supported: plain tensors")
    machine.stack.append(Storage(_STORAGES[kind.name], key, count))


def _set(machine: _Machine, pairs: list[Any]) -> None:
    target = machine.stack[-1]
    if not isinstance(target, dict):
        raise TypeError
    for name, value in zip(pairs[::2], pairs[1::2], strict=True):
        if not isinstance(name, str):  # also: what takes for ever to be compared
            refuse(f"{machine.file} holds something else than named tensors, supported: a plain state dict")
        if name in target:
            refuse(f"{machine.file} names {shown(name)} twice")
        target[name] = value


def _append(machine: _Machine, items: list[Any]) -> None:
    target = machine.stack[-1]
    if type(target) is not list:
        raise TypeError
    target.extend(items)


def _remember(machine: _Machine, argument: object) -> None:
    machine.memo[argument if isinstance(argument, int) else len(machine.memo)] = machine.stack[-1]


_PUSHED = "BINUNICODE SHORT_BINUNICODE BINUNICODE8 BININT BININT1 BININT2 LONG1 BINFLOAT"
_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(_PUSHED.split(), _push),
    "PROTO": lambda _machine, _argument: None,
    "FRAME": lambda _machine, _argument: None,
    "STOP": lambda _machine, _argument: None,  # what is on top is what the pickle says
    "MARK": lambda machine, _argument: machine.stack.append(_MARK),
    "NONE": lambda machine, _argument: machine.stack.append(None),
    "NEWTRUE": lambda machine, _argument: machine.stack.append(True),
    "NEWFALSE": lambda machine, _argument: machine.stack.append(False),
    "EMPTY_DICT": lambda machine, _argument: machine.stack.append({}),
    "EMPTY_LIST": lambda machine, _argument: machine.stack.append([]),
    "EMPTY_TUPLE": lambda machine, _argument: machine.stack.append(()),
    "TUPLE": lambda machine, _argument: machine.stack.append(tuple(machine.items())),
    "TUPLE1": lambda machine, _argument: machine.stack.append(machine.pops(1)),
    "TUPLE2": lambda machine, _argument: machine.stack.append(machine.pops(2)),
    "TUPLE3": lambda machine, _argument: machine.stack.append(machine.pops(3)),
    "APPEND": lambda machine, _argument: _append(machine, list(machine.pops(1))),
    "APPENDS": lambda machine, _argument: _append(machine, machine.items()),
    "SETITEM": lambda machine, _argument: _set(machine, list(machine.pops(2))),
    "SETITEMS": lambda machine, _argument: _set(machine, machine.items()),
    "BINPUT": _remember,
    "LONG_BINPUT": _remember,
    "MEMOIZE": _remember,
    "BINGET": lambda machine, argument: machine.stack.append(machine.memo[argument]),
    "LONG_BINGET": lambda machine, argument: machine.stack.append(machine.memo[argument]),
    "GLOBAL": _global,
    "STACK_GLOBAL": _stack_global,
    "REDUCE": _reduce,
    "BUILD": _build,
    "BINPERSID": _storage,
}
