"""Sorted keys of any number in bounded memory, and the rows whose key is not among them."""

import heapq
import itertools
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import IO, TypeVar

from common.json_load import load_json

Key = int | str  # number of a row, or path of a picture; all keys of an input are of one type
T = TypeVar("T")

CHUNK_KEYS = 200_000  # sorted in memory


def sort_keys(keys: Iterable[Key], chunk_keys: int = CHUNK_KEYS) -> Iterator[Key]:
    """Yield the keys in order, each once; more than `chunk_keys` are sorted in temporary files."""
    stream = iter(keys)
    chunks: list[Iterator[Key]] = []
    chunk = sorted(itertools.islice(stream, chunk_keys), key=_order)
    while len(chunk) == chunk_keys:
        chunks.append(_spill(chunk))
        chunk = sorted(itertools.islice(stream, chunk_keys), key=_order)
    merged = heapq.merge(*chunks, iter(chunk), key=_order)
    return (key for key, _ in itertools.groupby(merged))


def without(rows: Iterable[T], done: Iterable[Key], key_of: Callable[[T], Key]) -> Iterator[T]:
    """Yield the rows whose key is not among the `done` ones; both are in order."""
    keys = iter(done)
    key = next(keys, None)
    for row in rows:
        wanted = key_of(row)
        while key is not None and _order(key) < _order(wanted):
            key = next(keys, None)
        if key != wanted:
            yield row


def _order(key: Key) -> tuple[int, str]:
    return (key, "") if isinstance(key, int) else (0, key)


def _spill(chunk: list[Key]) -> Iterator[Key]:
    """The keys of a chunk, from a temporary file that has no name."""
    file: IO[str] = tempfile.TemporaryFile("w+", encoding="ascii")  # noqa: SIM115  closed when it is read
    file.writelines(f"{json.dumps(key)}\n" for key in chunk)
    file.seek(0)

    def read() -> Iterator[Key]:
        with file:
            for line in file:
                key: Key = load_json(line, takes_halves=True)  # of a path that is not UTF-8
                yield key

    return read()
