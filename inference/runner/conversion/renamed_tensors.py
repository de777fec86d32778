"""Finds tensors that a weight file has under other names, by suffix and shape."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from inference.runner.conversion.state_dict import group_names, summarize_names

Shapes = Mapping[str, tuple[int, ...]]
_SAMPLES = 12  # missing names that are compared with all names of the file
_MAX_RENAMINGS = 3  # in a sentence


@dataclass(frozen=True, slots=True)
class Renaming:
    """Tensors whose names begin otherwise than they should."""

    old: str  # beginning of the names in the file; empty, or ends with a dot
    new: str  # beginning of the names of the architecture, likewise
    names: tuple[str, ...]  # of the architecture


def find_renamings(missing: Shapes, surplus: Shapes) -> list[Renaming]:
    """Find beginnings of names by which most missing tensors would be found among the surplus; else nothing.

    Args:
        missing: shapes of the tensors that an architecture needs, by its names.
        surplus: shapes of the tensors of the file that the architecture does not have, by the file's names.
    """
    left, found = dict(missing), list[Renaming]()
    while left and len(found) < _MAX_RENAMINGS:
        candidates = {pair for name in _sample(left) for pair in _list_beginnings(name, left[name], surplus)}
        renamings = [_apply(old, new, left, surplus) for old, new in sorted(candidates)]
        best = max(renamings, key=lambda one: len(one.names), default=None)
        if best is None or not best.names:
            break
        found.append(best)
        for name in best.names:
            del left[name]
    return found if len(left) * 2 <= len(missing) else []


def _sample(names: Mapping[str, object]) -> list[str]:
    listed = list(names)
    return listed[:: max(1, len(listed) // _SAMPLES)]


def _list_beginnings(name: str, shape: tuple[int, ...], surplus: Shapes) -> set[tuple[str, str]]:
    """Pairs of beginnings: those of surplus names with the same shape and end, and that of the name."""
    parts = name.split(".")
    pairs = set()
    for other, other_shape in surplus.items():
        others = other.split(".")
        if other_shape != shape or others[-1] != parts[-1]:
            continue
        same = 0
        while same < min(len(parts), len(others)) and parts[-1 - same] == others[-1 - same]:
            same += 1
        pairs.add((_begin(others, same), _begin(parts, same)))
    return pairs


def _begin(parts: list[str], same: int) -> str:
    return "".join(f"{part}." for part in parts[: len(parts) - same])


def _apply(old: str, new: str, missing: Shapes, surplus: Shapes) -> Renaming:
    names = [
        name
        for name, shape in missing.items()
        if name.startswith(new) and surplus.get(f"{old}{name.removeprefix(new)}") == shape
    ]
    return Renaming(old, new, tuple(names))


def describe_old_norms(missing: Shapes, surplus: Shapes, file: str) -> tuple[str, ...]:
    """The sentence about norms that are there under the names of TensorFlow, if most missing tensors are norms."""
    old = {".weight": ".gamma", ".bias": ".beta"}
    pairs = [
        (name.removesuffix(end) + other, name) for name in missing for end, other in old.items() if name.endswith(end)
    ]
    count = sum(surplus.get(there) == missing[name] for there, name in pairs)
    if count * 2 <= len(missing):
        return ()
    return (f"{file}: {count} tensors of norms end with 'gamma' or 'beta', expected 'weight' or 'bias': rename them",)


def describe_renaming(one: Renaming, file: str, prefix: str, show: Callable[[str], str]) -> str:
    """The sentence that says what to rename.

    Args:
        one: the renaming.
        file: name of the weight file.
        prefix: of the names that were found.
        show: returns how publishers write a name of the architecture, or the beginning of one.
    """
    count = f"{len(one.names)} tensors" if len(one.names) > 1 else "1 tensor"
    group = summarize_names(one.names)
    if not one.old and not one.new:
        return f"{file}: the names of {group} do not begin with {prefix!r} as the others do: save all with one prefix"
    if not one.new:
        return f"{file}: only the names of {group} begin with {one.old!r}: save all with one prefix"
    if not one.old:
        return f"{file}: the names of {count} lack the beginning {show(one.new)!r}: save all with the names of training"
    if one.old.count(".") == 1 == one.new.count("."):
        return f"{file} has {count} under {one.old!r}, expected {show(one.new)!r}: rename them"
    old = next(iter(group_names(one.old + name.removeprefix(one.new) for name in one.names)))
    new = show(next(iter(group_names(one.names))))
    if len(one.names) == 1:
        return f"{file}: {old} has the shape of {new}: is it this one? then rename it"
    return f"{file}: {old} ({count}) have the names and shapes of {new}: rename them"
