"""Interprets the pickle opcodes that torch.save uses for named tensors; calls and imports nothing.

Of pickle's 68 opcodes only those that torch.save emits are accepted, and of global names only those in `_GLOBALS`,
which are never imported: the result describes in plain records what the pickle would build.
"""

import io
import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from common.source import ConversionRefused
from inference.runner.conversion.tensor_location import refuse, shorten

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


@dataclass(frozen=True, slots=True)
class GlobalName:
    """A global name that unpickling would import."""

    name: str  # "module name"


@dataclass(frozen=True, slots=True)
class PickledStorage:
    """A storage that unpickling would create."""

    dtype: str
    key: str
    count: int  # elements


@dataclass(frozen=True, slots=True)
class PickledTensor:
    """A tensor as the pickle describes it, unchecked."""

    storage: PickledStorage
    offset: object  # elements
    shape: object
    strides: object  # elements


class PickledDict(dict[str, Any]):
    """Items of an OrderedDict."""


class _StackMark:
    """Marker on the stack before the first item of a collection."""


_STACK_MARK = _StackMark()


@dataclass(slots=True)
class _Machine:
    """Stack and memo of one pickle."""

    file: str
    stack: list[Any] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def pop_to_mark(self) -> list[Any]:
        """Pop all items above the mark, in the order in which they were pushed."""
        taken: list[Any] = []
        while (item := self.stack.pop()) is not _STACK_MARK:
            taken.append(item)
        return taken[::-1]

    def pop_many(self, count: int) -> tuple[Any, ...]:
        """Pop `count` items, in the order in which they were pushed."""
        taken = tuple(self.stack.pop() for _ in range(count))
        return taken[::-1]


def run_pickle(file: str, data: io.BytesIO) -> object:
    """Interpret one pickle and leave `data` positioned after it.

    Args:
        file: its name, for messages.
        data: a bounded part of the file.

    Returns:
        Strings, numbers, tuples, lists and records of this module.

    Raises:
        ConversionRefused: the pickle is damaged, or does anything but describe tensors.
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
        refuse(f"{file} is damaged: a pickle in it is malformed")


def _push(machine: _Machine, argument: object) -> None:
    machine.stack.append(argument)


def _global(machine: _Machine, argument: str) -> None:
    if argument not in _GLOBALS:
        name = shorten(argument).replace(" ", ".")
        advice = next((advice for mark, advice in _ADVICE.items() if mark in name), _ADVICE_FOR_ALL)
        refuse(f"{machine.file} imports {name}, supported: tensors only; {advice}")  # rule 1
    machine.stack.append(GlobalName(argument))


NUMPY_ADVICE = "make tensors of numpy's arrays with torch.from_numpy, and save them again"
_ADVICE = {
    "_rebuild_tensor_v3": "it stands for float8 and other new types: convert the tensors to bfloat16, and save again",
    "_rebuild_qtensor": "save the model from before quantisation",
    "Complex": "the model has no complex numbers: save real ones",
    "numpy.": NUMPY_ADVICE,
}
_ADVICE_FOR_ALL = "save the weights alone, with torch.save(model.state_dict(), …)"


def _stack_global(machine: _Machine, _argument: object) -> None:
    module, name = machine.pop_many(2)
    if not isinstance(module, str) or not isinstance(name, str):
        raise TypeError
    _global(machine, f"{module} {name}")


def _reduce(machine: _Machine, _argument: object) -> None:
    called, arguments = machine.pop_many(2)
    if not isinstance(called, GlobalName) or type(arguments) is not tuple:
        raise TypeError
    if called.name == _TABLE and not arguments:
        machine.stack.append(PickledDict())
    elif called.name in _TENSORS and isinstance(arguments[0], PickledStorage):
        machine.stack.append(PickledTensor(*arguments[:4]))
    elif called.name == _PARAMETER and isinstance(arguments[0], PickledTensor):
        machine.stack.append(arguments[0])
    else:
        raise TypeError


def _build(machine: _Machine, _argument: object) -> None:
    """Ignore a state dict's attributes, which are versions of its modules."""
    machine.stack.pop()
    if not isinstance(machine.stack[-1], PickledDict):
        raise TypeError


def _storage(machine: _Machine, _argument: object) -> None:
    tag, kind, key, _device, count, *rest = machine.stack.pop()
    if tag != "storage" or not isinstance(kind, GlobalName) or not isinstance(key, str) or type(count) is not int:
        raise TypeError
    if any(one is not None for one in rest):
        refuse(f"{machine.file} contains views of storages, which only very old files have; supported: plain tensors")
    machine.stack.append(PickledStorage(_STORAGES[kind.name], key, count))


def _set(machine: _Machine, pairs: list[Any]) -> None:
    target = machine.stack[-1]
    if not isinstance(target, dict):
        raise TypeError
    for name, value in zip(pairs[::2], pairs[1::2], strict=True):
        if not isinstance(name, str) and type(name) is not int:  # others may be expensive to hash or compare
            refuse(f"{machine.file} has a dictionary whose key is a {type(name).__name__}, supported: a state dict")
        if name in target:
            refuse(f"{machine.file} names {shorten(str(name))} twice")
        target[name] = value


def _append(machine: _Machine, items: list[Any]) -> None:
    target = machine.stack[-1]
    if type(target) is not list:
        raise TypeError
    target.extend(items)


def _memoize(machine: _Machine, argument: object) -> None:
    machine.memo[argument if isinstance(argument, int) else len(machine.memo)] = machine.stack[-1]


_PUSHED = "BINUNICODE SHORT_BINUNICODE BINUNICODE8 BININT BININT1 BININT2 LONG1 BINFLOAT"
_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(_PUSHED.split(), _push),
    "PROTO": lambda _machine, _argument: None,
    "FRAME": lambda _machine, _argument: None,
    "STOP": lambda _machine, _argument: None,  # the top of the stack is the result
    "MARK": lambda machine, _argument: machine.stack.append(_STACK_MARK),
    "NONE": lambda machine, _argument: machine.stack.append(None),
    "NEWTRUE": lambda machine, _argument: machine.stack.append(True),
    "NEWFALSE": lambda machine, _argument: machine.stack.append(False),
    "EMPTY_DICT": lambda machine, _argument: machine.stack.append({}),
    "EMPTY_LIST": lambda machine, _argument: machine.stack.append([]),
    "EMPTY_TUPLE": lambda machine, _argument: machine.stack.append(()),
    "TUPLE": lambda machine, _argument: machine.stack.append(tuple(machine.pop_to_mark())),
    "TUPLE1": lambda machine, _argument: machine.stack.append(machine.pop_many(1)),
    "TUPLE2": lambda machine, _argument: machine.stack.append(machine.pop_many(2)),
    "TUPLE3": lambda machine, _argument: machine.stack.append(machine.pop_many(3)),
    "APPEND": lambda machine, _argument: _append(machine, list(machine.pop_many(1))),
    "APPENDS": lambda machine, _argument: _append(machine, machine.pop_to_mark()),
    "SETITEM": lambda machine, _argument: _set(machine, list(machine.pop_many(2))),
    "SETITEMS": lambda machine, _argument: _set(machine, machine.pop_to_mark()),
    "BINPUT": _memoize,
    "LONG_BINPUT": _memoize,
    "MEMOIZE": _memoize,
    "BINGET": lambda machine, argument: machine.stack.append(machine.memo[argument]),
    "LONG_BINGET": lambda machine, argument: machine.stack.append(machine.memo[argument]),
    "GLOBAL": _global,
    "STACK_GLOBAL": _stack_global,
    "REDUCE": _reduce,
    "BUILD": _build,
    "BINPERSID": _storage,
}
