"""Sorted keys in bounded memory, and the rows that are not among them."""

import random

from cli.batch.ordering import sort_keys, without


def test_keys_are_sorted_in_files_as_in_memory() -> None:
    """Numbers by value, names by code point, half characters of file names too; each once."""
    numbers = [*range(100), *range(50)]
    random.Random(1).shuffle(numbers)
    names = ["b/é.png", "a.png", "B.png", "\udcff.png", "a.png", "线.png"]

    assert list(sort_keys(numbers, chunk_keys=7)) == list(range(100))
    assert list(sort_keys(names, chunk_keys=2)) == sorted(set(names))


def test_rows_with_a_result_are_left_out() -> None:
    """Results of rows that are gone concern no other row."""
    rows = ["a", "c", "d", "f"]

    assert list(without(rows, ["a", "b", "d", "e"], str)) == ["c", "f"]
    assert list(without(rows, [], str)) == rows
    assert list(without([1, 2, 3], [2, 10], int)) == [1, 3]
