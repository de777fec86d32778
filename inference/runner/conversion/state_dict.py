"""Finds the tensors of one architecture among the names of a weight file: wrapped, prefixed, or beside others.

For every engine. Tensors that the architecture does not have are noted, not refused: the libraries that models are
published with ignore them. If two sets of names are equally complete, the file is refused and the sentence names both.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from inference.runner.conversion.pickle_machine import PickledTensor
from inference.runner.conversion.tensor_location import refuse, shorten

_MAX_DEPTH = 3  # dictionaries in dictionaries that are searched
_MAX_SHOWN = 5  # names or groups of names in a sentence
_MAX_EXAMPLES = 2  # names where they only show what is in a file
_AVERAGED = ("ema", "averag", "swa")  # in the name of a copy of the weights that was averaged during training


@dataclass(frozen=True, slots=True)
class TensorNames:
    """The names that an architecture has."""

    required: Collection[str]
    allowed: Collection[str]  # all names, the required ones included
    stock_prefix: str = ""  # that the published library strips, such as "model."; it wins over names without a prefix
    show: Callable[[str], str] = str  # how publishers write a name, or the beginning of one
    rename: Callable[[str], str] = str  # from other names of the same tensors, which the published library knows too


@dataclass(frozen=True, slots=True)
class MatchedNames:
    """Which of a file's names are an architecture's."""

    prefix: str  # of the file's names
    file_names: Mapping[str, str]  # name in the file by name of the architecture
    surplus: tuple[str, ...]  # names in the file that the architecture does not have

    def describe(self, file: str) -> tuple[str, ...]:
        """Notes about the prefix and the surplus tensors."""
        notes = []
        if self.prefix:
            notes.append(f"{file}: the tensors' names begin with {shorten(self.prefix)!r}; the prefix is removed")
        if self.surplus:
            count = f"{len(self.surplus)} tensors" if len(self.surplus) > 1 else "1 tensor"
            notes.append(f"{file}: {count} that this model does not have, ignored: {summarize_names(self.surplus)}")
        return tuple(notes)


def match_names(file: str, names: Collection[str], wanted: TensorNames) -> MatchedNames:
    """Find the prefix under which a file names an architecture's tensors.

    Args:
        file: its name, for messages.
        names: of all tensors in the file.
        wanted: the architecture's.

    Raises:
        ConversionRefused: no name is the architecture's, a tensor is there under two names, or two prefixes are equally
            complete.
    """
    renamed = {name: wanted.rename(name) for name in names}
    prefix = _choose_prefix(file, renamed.values(), wanted)
    matched: dict[str, str] = {}
    for name, known in renamed.items():
        if known.startswith(prefix) and known.removeprefix(prefix) in wanted.allowed:
            if known.removeprefix(prefix) in matched:
                refuse(f"{file}: tensor {shorten(known)} is there under two names")
            matched[known.removeprefix(prefix)] = name
    return MatchedNames(prefix, matched, tuple(sorted(set(names) - set(matched.values()))))


def _choose_prefix(file: str, names: Collection[str], wanted: TensorNames) -> str:
    counts = _count_prefixes(names, wanted.allowed)
    if not counts:
        advice = _advise_on_names(names, wanted)
        refuse(
            f"{file} holds no tensor of this model: it has {_list(sorted(names), _MAX_EXAMPLES)} and the like, expected"
            f" {_list(sorted(wanted.required), _MAX_EXAMPLES)} and the like{advice}"
        )
    required = _count_prefixes(names, wanted.required)
    complete = [prefix for prefix in counts if required[prefix] == len(wanted.required)]
    if len(complete) <= 1:
        return complete[0] if complete else max(counts, key=lambda prefix: (counts[prefix], prefix == ""))
    for preferred in (wanted.stock_prefix, ""):
        if preferred in complete:
            return preferred
    plain = [prefix for prefix in complete if not is_averaged(prefix)]
    if len(plain) != 1:
        refuse(f"{file} holds the model several times, under {_list(sorted(complete))}; publish one of them alone")
    return plain[0]


def _advise_on_names(names: Collection[str], wanted: TensorNames) -> str:
    """What to do about a file without any of the names."""
    if any(".lora_" in name for name in names):
        return "; merge the LoRA adapter into its model, and save that"
    if _count_prefixes((wanted.rename(name.replace("/", ".")) for name in names), wanted.allowed):
        return "; write a dot for each slash"
    return "; is it of another model?"


def _count_prefixes(names: Iterable[str], known: Collection[str]) -> Counter[str]:
    """How many of the known names occur behind each prefix; a prefix is empty or ends with a dot."""
    counts: Counter[str] = Counter()
    for name in names:
        start = 0
        while start >= 0:
            if name[start:] in known:
                counts[name[:start]] += 1
            start = name.find(".", start) + 1 or -1
    return counts


def is_averaged(name: str) -> bool:
    """Whether a key or prefix names an averaged copy of the weights (EMA)."""
    return any(word in name.lower() for word in _AVERAGED)


def summarize_names(names: Iterable[str]) -> str:
    """Names for a sentence; those with the same first part as one group with its size."""
    shown = [f"{name} ({len(group)})" if len(group) > 1 else name for name, group in group_names(names).items()]
    more = f", and {len(shown) - _MAX_SHOWN} more groups" if len(shown) > _MAX_SHOWN else ""
    return ", ".join(shown[:_MAX_SHOWN]) + more


def group_names(names: Iterable[str]) -> dict[str, list[str]]:
    """Names with the same first part, by what they have in common."""
    groups: dict[str, list[str]] = {}
    for name in sorted(names):
        groups.setdefault(name.split(".", 1)[0], []).append(name)
    return {_describe_group(group): group for group in groups.values()}


def _describe_group(names: list[str]) -> str:
    if len(names) == 1:
        return shorten(names[0])
    first, last = names[0].split("."), names[-1].split(".")  # sorted: these two differ the earliest
    common = []
    for one, other in zip(first, last, strict=False):
        if one != other:
            break
        common.append(one)
    return f"{shorten('.'.join(common))}.…"


def _list(names: Iterable[str], most: int = _MAX_SHOWN) -> str:
    return ", ".join(repr(shorten(name)) for name in list(names)[:most])


@dataclass(frozen=True, slots=True)
class FoundStateDict:
    """Named tensors in the content of a file."""

    tensors: Mapping[str, PickledTensor]
    notes: tuple[str, ...]


def find_state_dict(file: str, content: object, wanted: TensorNames) -> FoundStateDict:
    """Find the named tensors in a file's content: the content itself, or a dictionary in it.

    Training programs write checkpoints such as {"state_dict": {…}, "optimizer": {…}, "epoch": 3}.

    Args:
        file: its name, for messages.
        content: of the file; only dictionaries are searched.
        wanted: the architecture's names.

    Raises:
        ConversionRefused: there are none, or several dictionaries hold the model.
    """
    tables = {path: table for path, table in _walk(content) if table}
    if not tables:
        kind = "a dictionary without tensors" if isinstance(content, dict) else f"a {type(content).__name__}"
        refuse(f"{file} holds {kind}, supported: named tensors (a state dict)")
    path = _choose_table(file, tables, wanted)
    table = _at(content, path)
    others = sorted(str(key) for key, value in table.items() if not isinstance(value, PickledTensor))
    notes = [f"{file}: {_list(others)} beside the tensors is ignored"] if others else []
    if path:
        beside = sorted(str(key) for key in _at(content, ()) if str(key) != path[0])
        rest = f"; {_list(beside)} beside it is ignored" if beside else ""
        notes.insert(0, f"{file}: the tensors are under the key {shorten('.'.join(path))!r}{rest}")
    return FoundStateDict(tables[path], tuple(notes))


_Path = tuple[str, ...]


def _walk(content: object) -> Iterator[tuple[_Path, dict[str, PickledTensor]]]:
    """Every dictionary within the depth, with its named tensors; each once, although pickles may share them."""
    waiting: list[tuple[_Path, object]] = [((), content)]
    seen: set[int] = set()
    while waiting:
        path, table = waiting.pop(0)
        if not isinstance(table, dict) or id(table) in seen:
            continue
        seen.add(id(table))
        yield (
            path,
            {key: value for key, value in table.items() if isinstance(key, str) and isinstance(value, PickledTensor)},
        )
        if len(path) < _MAX_DEPTH:
            waiting += [((*path, str(key)), value) for key, value in table.items() if isinstance(value, dict)]


def _choose_table(file: str, tables: Mapping[_Path, Mapping[str, object]], wanted: TensorNames) -> _Path:
    required = {
        path: max([0, *_count_prefixes(map(wanted.rename, table), wanted.required).values()])
        for path, table in tables.items()
    }
    complete = [path for path, count in required.items() if count == len(wanted.required)]
    if () in complete or len(complete) == 1:
        return () if () in complete else complete[0]
    if not complete:
        best = max(required, key=lambda path: (required[path], -len(path)))
        return best if required[best] else min(tables, key=len)
    plain = [path for path in complete if not is_averaged(".".join(path))]
    if len(plain) != 1:
        names = _list(sorted(".".join(path) for path in complete))
        refuse(f"{file} holds the model several times, under the keys {names}; publish one of them alone")
    return plain[0]


def _at(content: object, path: _Path) -> Mapping[object, object]:
    for key in path:
        table = content if isinstance(content, dict) else {}
        content = next(value for name, value in table.items() if str(name) == key)
    return content if isinstance(content, dict) else {}
