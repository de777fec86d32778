"""Compares the tensors of a weight file with those of a configuration, and finds the keys that disagree.

For every engine. An engine says which tensors follow from its sizes, and each size has its key; the keys on which a
dimension depends are found by changing one size after the other. So a refusal names the key, its value, and the value
with which the weights were saved.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from common.source import ConversionRefused
from inference.runner.conversion.config_file import SizeKey
from inference.runner.conversion.refusals import DisagreementRefused
from inference.runner.conversion.state_dict import summarize_names
from inference.runner.conversion.tensor_content import are_all_zero
from inference.runner.conversion.tensor_location import FLOATS
from inference.runner.conversion.weight_files import LocatedTensors

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
INTEGERS = ("int64", "int32")  # dtypes of index tables and counters
_QUANTISED = ("int8", "uint8")
_MAX_COUNT = 128  # the largest value that is tried for a size on which a dimension does not depend linearly
_MAX_CAUSES = 4  # keys in a sentence


@dataclass(frozen=True, slots=True)
class ExpectedTensors:
    """Tensors that a source must and may contain, with their shapes."""

    required: Shapes
    optional: Shapes = field(default_factory=dict)  # index tables and counters, which can be recomputed
    tied: Shapes = field(default_factory=dict)  # other names of a required tensor

    def all(self) -> Shapes:
        """Every tensor."""
        return {**self.required, **self.optional, **self.tied}


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes of a configuration, and the tensors that follow from them."""

    keys: tuple[SizeKey, ...]
    expect: Callable[[Mapping[str, Any]], ExpectedTensors]  # with some sizes changed, by field


@dataclass(frozen=True, slots=True)
class _Cause:
    """A size that the weights contradict."""

    size: SizeKey
    value: Any  # with which the weights were saved
    name: str  # of the value
    detail: str  # the tensors that show it


def check_fit(located: LocatedTensors, sizes: Sizes) -> None:
    """Compare a weight file's tensors with those of a configuration.

    Raises:
        DisagreementRefused: a tensor is missing, or of another shape or dtype; the message names the keys that
            disagree, if other values of them would do.
    """
    if located.renamings:
        refuse_renamed(located, sizes)
    expected = sizes.expect({})
    wrong = _list_wrong(located, expected)
    if located.missing or wrong:
        causes = [*_find_counts(located, sizes), *_find_sizes(wrong, located, sizes)]
        changed = sizes.expect({cause.size.attribute: cause.value for cause in causes})
        left = len(changed.required.keys() - located.locations.keys()) + len(_list_wrong(located, changed))
        if causes and 2 * left <= len(located.missing) + len(wrong):
            _refuse_causes(located, causes)
    if located.missing:
        _refuse_missing(located, sizes)
    if wrong:
        _refuse_shape(wrong[0], located, sizes)
    for name in expected.all():
        if name not in located.locations:
            continue
        dtype, supported = located.locations[name].dtype, INTEGERS if name in expected.optional else FLOATS
        if dtype not in supported:
            advice = "save the model from before quantisation" if dtype in _QUANTISED else "save it as such"
            message = f"{located.file}: tensor {name} is {dtype}, supported: {', '.join(supported)}; {advice}"
            raise ConversionRefused("WEIGHTS_BROKEN", message, file=located.file)


def refuse_renamed(located: LocatedTensors, sizes: Sizes) -> NoReturn:
    """Refuse a file whose missing tensors are there under other names."""
    keys = [key for size in sizes.keys for key in size.keys]
    raise DisagreementRefused("WEIGHTS_BROKEN", "; ".join(located.renamings), located.file, keys, blames_keys=False)


def describe_unused(located: LocatedTensors, sizes: Sizes) -> tuple[str, ...]:
    """Notes about weights that are all zero, and about counts lower than the file's; what it has more is ignored."""
    zero = (f"{located.file}: all weights are zero: was it saved before it was trained?",)
    surplus = set(located.surplus)
    before = sizes.expect({}).required.keys() if surplus else set()
    counts = [size for size in sizes.keys if surplus and not size.named]
    more = {size: sizes.expect({size.attribute: size.value + 1}).required.keys() - before for size in counts}
    return (zero if are_all_zero(located.locations.values()) else ()) + tuple(
        f"{size.sentence}, but {located.file} has more: the others are ignored, as by ModelScope's pipeline"
        for size, names in more.items()
        if names and all(any(f".{other}".endswith(f".{name}") for other in surplus) for name in names)
    )


def _list_wrong(located: LocatedTensors, expected: ExpectedTensors) -> list[str]:
    """The tensors of another shape, in the order of the architecture."""
    locations = located.locations
    return [name for name, shape in expected.all().items() if name in locations and locations[name].shape != shape]


def _refuse_causes(located: LocatedTensors, causes: list[_Cause]) -> NoReturn:
    shown = causes[:_MAX_CAUSES]
    keys = [key for cause in causes for key in cause.size.keys]
    if len(causes) == 1:
        saved = f"{located.file} was saved with {causes[0].name}: {causes[0].detail}"
        message = f"{causes[0].size.sentence}, but {saved}; correct the one that is wrong"
    else:
        parts = [f"{one.size.sentence}, but was saved with {one.name}" for one in shown]
        more = f"; {len(causes) - len(shown)} more differ" if len(causes) > len(shown) else ""
        message = f"{located.file} does not fit: {'; '.join(parts)}{more}; is it the configuration of another model?"
    raise DisagreementRefused(causes[0].size.reason, message, located.file, keys)


def _refuse_missing(located: LocatedTensors, sizes: Sizes) -> NoReturn:
    missing = located.missing
    lacks = f"tensor {missing[0]}" if len(missing) == 1 else f"{len(missing)} tensors, {summarize_names(missing)}"
    held = f"it has {located.required - len(missing)} of {located.required} tensors of this configuration"
    surplus = f", and also {summarize_names(located.surplus)}" if located.surplus else ""
    advice = "save the whole model again, or publish the configuration with which it was trained"
    keys = [key for size in sizes.keys for key in size.keys]
    message = f"{located.file} lacks {lacks}: {held}{surplus}; {advice}"
    raise DisagreementRefused("WEIGHTS_BROKEN", message, located.file, keys, blames_keys=False)


def _refuse_shape(name: str, located: LocatedTensors, sizes: Sizes) -> NoReturn:
    expected = sizes.expect({}).all()[name]
    known = [size for size in sizes.keys if sizes.expect({size.attribute: _next(size)}).all().get(name) != expected]
    because = f", since {' and '.join(size.sentence for size in known)}" if known else ""
    message = f"{located.file}: tensor {name} has shape {located.locations[name].shape}, expected {expected}{because}"
    raise DisagreementRefused(
        "WEIGHTS_BROKEN", message, located.file, [key for size in known for key in size.keys], blames_keys=False
    )


def _next(size: SizeKey) -> object:
    """Another value."""
    return next(iter(size.named.values()), None) if size.named else int(size.value) + 1


def _find_counts(located: LocatedTensors, sizes: Sizes) -> list[_Cause]:
    """Counts, such as of layers, that are larger than the file's."""
    missing = set(located.missing)
    before = sizes.expect({}).required
    causes: list[_Cause] = []
    for size in sizes.keys if missing else ():
        best: tuple[int, str, Any] = (0, "", None)
        for name, value in _smaller(size):
            without = before.keys() - sizes.expect({size.attribute: value}).required.keys()
            if without <= missing:
                best = max(best, (len(without), name, value), key=lambda one: one[0])
            if not without or (not without <= missing and not size.named):
                break
        if best[0]:
            without = before.keys() - sizes.expect({size.attribute: best[2]}).required.keys()
            causes.append(_Cause(size, best[2], best[1], _describe_lacking(before, without)))
    return causes


def _describe_lacking(names: Iterable[str], lacking: Collection[str]) -> str:
    more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
    return f"it has no tensor {next(name for name in names if name in lacking)}{more}"


def _smaller(size: SizeKey) -> list[tuple[str, Any]]:
    if size.named:
        return list(size.named.items())
    return [(str(value), value) for value in range(size.value - 1, size.extra, -1)]


def _find_sizes(wrong: Sequence[str], located: LocatedTensors, sizes: Sizes) -> list[_Cause]:
    """Sizes that are others in the file, by the shapes of its tensors."""
    causes = []
    for size in sizes.keys if wrong else ():
        if size.named:
            continue
        votes: Counter[int] = Counter()
        shown: dict[int, str] = {}
        before, after = sizes.expect({}).all(), sizes.expect({size.attribute: size.value + 1}).all()
        for name in wrong:
            found = located.locations[name].shape
            for axis, (old, new, real) in enumerate(zip(before[name], after.get(name, ()), found, strict=False)):
                if len(found) != len(before[name]) or old in (new, real):
                    continue
                value = _solve(size, name, axis, real, sizes, guess=size.value + (real - old) // (new - old))
                votes[value] += 1
                shown.setdefault(value, f"tensor {name} has shape {found}, expected {before[name]}")
        votes.pop(0, None)
        if votes:
            value, count = votes.most_common(1)[0]
            more = f" (and {count - 1} more)" if count > 1 else ""
            causes.append(_Cause(size, value, str(value - size.extra), f"{shown[value]}{more}"))
    return causes


def _solve(size: SizeKey, name: str, axis: int, real: int, sizes: Sizes, guess: int) -> int:
    """The value of a size with which a tensor's dimension is what it is; 0 if there is none."""
    values = (guess, *range(1, _MAX_COUNT + 1))
    shapes = ((value, sizes.expect({size.attribute: value}).all().get(name)) for value in values if value > 0)
    return next((value for value, shape in shapes if shape is not None and shape[axis] == real), 0)
